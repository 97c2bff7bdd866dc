"""From a score for each reply to a reward for each token.  Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.masked import masked_var


def shape_scores(
    scores: Tensor, ended: Tensor, *, scale: float = 1.0, clip: float = 0.0, missing_eos_penalty: float | None = None
) -> Tensor:
    """(B,) scores scaled, then clipped to [-clip, clip]; a reply that did not end gets the penalty *instead*."""
    shaped = scores * scale
    if clip > 0:
        shaped = shaped.clamp(-clip, clip)
    if missing_eos_penalty is not None:
        shaped = torch.where(ended, shaped, torch.full_like(shaped, missing_eos_penalty))
    return shaped


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(B, T): -beta (log π - log π_ref) on every valid token, plus the score, once, at the last valid one.

    k1 of joschu.net/blog/kl-approx.html; single tokens may be negative, their mean over samples from π is the KL.
    """
    rewards = torch.where(mask, -beta * (logprobs - ref_logprobs), 0.0)
    last = mask.sum(1).clamp(min=1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def whiten_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """(B, T) divided by the standard deviation over valid tokens; the mean is scaled with them, not subtracted.

    Subtracting it could change the sign of the score at EOS.
    """
    return torch.where(mask, rewards * torch.rsqrt(masked_var(rewards, mask) + 1e-8), 0.0)
