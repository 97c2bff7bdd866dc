"""Losses against a known target: cross-entropy over labels and squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.masked import mean_of, same_shape, wide
from accord.types import LossOutput, Mean


def sft_loss(logprobs: Tensor) -> LossOutput:
    """Cross-entropy: -log p summed over the N labeled tokens.  ``logprobs`` (N,), no padding among them."""
    loss = mean_of(-logprobs)
    return LossOutput(loss, {"nll": loss.detach()})


def nll_loss(total: Tensor, count: int) -> LossOutput:
    """``sft_loss`` where the sum of -log p over ``count`` labels is known already."""
    loss = Mean(total, torch.tensor(count, device=total.device))
    return LossOutput(loss, {"nll": loss.detach()})


def mse_loss(pred: Tensor, target: Tensor, weights: Tensor | None = None) -> LossOutput:
    """Squared error, per element, times its weight where there are ``weights``."""
    same_shape(target, pred=pred)
    error = wide(pred) - wide(target)
    loss = error.square()
    if weights is not None:
        same_shape(target, weights=weights)
        loss = weights * loss
    return LossOutput(mean_of(loss), {"absolute_error": mean_of(error.detach().abs())})
