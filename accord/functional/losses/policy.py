"""Losses over the actions of a policy: the clipped surrogate, the value function, entropy and the KL penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.kl import k1, k3, kl_in_loss
from accord.functional.masked import keep, mean_over, same_shape, wide
from accord.types import LossOutput


def ppo_policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> LossOutput:
    """-min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A), per action (Schulman et al. 2017, eq. 7).

    All of one shape; ``new`` and ``old`` are log-probabilities of the actions taken, under the same temperature.
    ``clip_fraction`` counts the actions whose loss the clip changes, ``approx_kl`` estimates KL(old || new) by k3,
    ``ratio`` is 1 to rounding on the first step after sampling.
    """
    same_shape(mask, new=new, old=old, advantages=advantages)
    log_ratio = keep(wide(new) - wide(old), mask)
    ratio = log_ratio.exp()
    unclipped = -wide(advantages) * ratio
    clipped = -wide(advantages) * ratio.clamp(1 - clip_range, 1 + clip_range)
    with torch.no_grad():
        metrics = {
            "clip_fraction": mean_over(clipped > unclipped, mask),
            "approx_kl": mean_over(k3(-log_ratio), mask),
            "ratio": mean_over(ratio, mask),
        }
    return LossOutput(mean_over(torch.maximum(unclipped, clipped), mask), metrics)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range_value: float | None
) -> LossOutput:
    """Half the squared error; clipped: max((v - R)^2, (clip(v, v_old - eps, v_old + eps) - R)^2) / 2.

    The maximum takes the worse of the two, as in openai/baselines and lm-human-preferences.  None: no clip.
    """
    same_shape(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (keep(wide(x), mask) for x in (values, old_values, returns))
    loss = (values - returns).square()
    clip_active = torch.zeros_like(mask)
    if clip_range_value is not None:
        moved = values - old_values
        near = old_values + moved.clamp(-clip_range_value, clip_range_value)
        clipped = (near - returns).square()
        clip_active = (clipped > loss) & (
            moved.abs() > clip_range_value
        )  # inside the range only rounding makes them differ
        loss = torch.maximum(loss, clipped)
    metrics = {"value_clip_fraction": mean_over(clip_active, mask), "value": mean_over(values.detach(), mask)}
    return LossOutput(mean_over(loss / 2, mask), metrics)


def entropy_bonus(entropy: Tensor, mask: Tensor) -> LossOutput:
    """-entropy, per action: to be multiplied by a positive coefficient and added to the loss."""
    return LossOutput(mean_over(-entropy, mask), {"entropy": mean_over(entropy.detach(), mask)})


def kl_penalty_loss(new: Tensor, ref: Tensor, mask: Tensor, estimator: str = "k2") -> LossOutput:
    """An estimate of KL(policy || reference) per action, for the loss; ``estimator`` "k2" or "k3" (``kl_in_loss``).

    ``new`` and ``ref`` are log-probabilities of actions drawn from the policy.  ``reference_kl`` is the unbiased k1.
    """
    same_shape(mask, new=new, ref=ref)
    log_ratio = keep(wide(new) - wide(ref), mask)
    metrics = {"reference_kl": mean_over(k1(log_ratio.detach()), mask)}
    return LossOutput(mean_over(kl_in_loss(estimator)(log_ratio), mask), metrics)
