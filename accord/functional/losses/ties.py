"""Losses over pairs of replies of which one is preferred or neither: ties as a third outcome.

Both models extend Bradley-Terry by one parameter and equal it where ties have probability 0: θ >= 1 of Rao and Kupper
(1967), or ν >= 0 of Davidson (1970).  ``log_tie`` is its logarithm as it is learned, that of θ - 1 or of ν.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from accord.functional.losses.preference import wins
from accord.functional.masked import mean_of, same_shape, wide
from accord.types import LossOutput, SoftLabels

TieModel = Literal["rao_kupper", "davidson"]


def rao_kupper_logprobs(difference: Tensor, log_tie: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of win, tie and loss where the scores differ by ``difference`` (B,).

    With π = exp(score): P(win) = π_a / (π_a + θ π_b), P(loss) = π_b / (θ π_a + π_b), P(tie) = (θ² - 1) P(win) P(loss).
    """
    log_theta = softplus(log_tie)  # θ = 1 + exp(log_tie)
    win, loss = logsigmoid(difference - log_theta), logsigmoid(-difference - log_theta)
    two = torch.full_like(log_tie, math.log(2))
    return win, log_tie + torch.logaddexp(two, log_tie) + win + loss, loss  # θ² - 1 = (θ - 1) (θ + 1)


def davidson_logprobs(difference: Tensor, log_tie: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of win, tie and loss where the scores differ by ``difference`` (B,).

    With π = exp(score): π_a, ν √(π_a π_b) and π_b, each divided by their sum.
    """
    outcomes = torch.stack([difference / 2, log_tie.expand_as(difference), -difference / 2])
    win, tie, loss = outcomes.log_softmax(0)
    return win, tie, loss


LOGPROBS = {"rao_kupper": rao_kupper_logprobs, "davidson": davidson_logprobs}


def tie_parameter(model: TieModel, log_tie: float) -> float:
    """θ of Rao and Kupper, or ν of Davidson."""
    return math.exp(log_tie) + (1.0 if model == "rao_kupper" else 0.0)


def log_tie_of(model: TieModel, parameter: float) -> float:
    """The inverse of ``tie_parameter``."""
    return math.log(parameter - (1.0 if model == "rao_kupper" else 0.0))


def log_tie_of_share(ties: int, pairs: int) -> float:
    """The parameter, as it is learned, with which equal replies tie as often as ``ties`` of ``pairs`` did: 2 s / (1 - s) for
    both models, since θ - 1 and ν are the same function of P(tie) at equal scores.  Half an observation is added to each side.
    """
    share = (ties + 0.5) / (pairs + 1)
    return math.log(2 * share / (1 - share))


def tie_loss(chosen: Tensor, rejected: Tensor, soft: SoftLabels, log_tie: Tensor, model: TieModel) -> LossOutput:
    """-log P(outcome), per pair, each times its weight; label 1 is a win of chosen, 1/2 a tie, 0 a win of rejected.

    ``chosen``, ``rejected`` (B,); ``log_tie`` ().
    """
    same_shape(chosen, rejected=rejected, labels=soft.labels, weights=soft.weights)
    chosen, rejected = wide(chosen), wide(rejected)
    difference = chosen - rejected
    win, tie, loss = LOGPROBS[model](difference, log_tie)
    outcome = torch.where(soft.labels == 0.5, tie, torch.where(soft.labels > 0.5, win, loss))
    with torch.no_grad():
        metrics = {
            "accuracy": wins(chosen, rejected, soft),
            "margin": mean_of(difference),
            "chosen_reward": mean_of(chosen),
            "rejected_reward": mean_of(rejected),
            "tie_probability": mean_of(tie.exp()),
            "tie_share": mean_of(soft.labels == 0.5),
        }
    return LossOutput(mean_of(-soft.weights * outcome), metrics)
