"""Losses over pairs of replies, of which one is preferred."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from accord.functional.masked import mean_of, same_shape, wide
from accord.types import LossOutput, Mean


def _wins(a: Tensor, b: Tensor) -> Mean:
    """How often a > b; a tie is half a win, so that a constant model scores 1/2."""
    return mean_of((a > b).float() + (a == b).float() / 2)


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, center: float = 0.0
) -> LossOutput:
    """-log sigmoid(r_chosen - r_rejected - margin), per pair (Ouyang et al. 2022, eq. 1; margin: Llama 2, eq. 2).

    All (B,).  ``center`` is the weight of (r_chosen + r_rejected)^2, which keeps the free constant of the rewards near 0
    (Eisenstein et al. 2023).
    """
    same_shape(chosen, rejected=rejected)
    chosen, rejected = wide(chosen), wide(rejected)
    difference = chosen - rejected
    if margins is None:
        loss = -logsigmoid(difference)
    else:
        same_shape(chosen, margins=margins)
        loss = -logsigmoid(difference - margins)
    if center:
        loss = loss + center * (chosen + rejected).square()
    with torch.no_grad():
        metrics = {
            "accuracy": _wins(chosen, rejected),
            "margin": mean_of(difference),
            "chosen_reward": mean_of(chosen),
            "rejected_reward": mean_of(rejected),
        }
    return LossOutput(mean_of(loss), metrics)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """-log sigmoid(beta * (policy_logratios - ref_logratios)), per pair (Rafailov et al. 2023, eq. 7).

    All (B,): log-probabilities *summed* over the reply's tokens, without the prompt's.  ``label_smoothing`` is the
    probability that a label is flipped (conservative DPO; Mitchell 2023, eq. 3).  ln 2 where policy and reference agree.
    The log-probabilities are reported separately, since the margin can grow while both fall.
    """
    same_shape(policy_chosen, policy_rejected=policy_rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    chosen_reward = beta * (wide(policy_chosen) - wide(ref_chosen))
    rejected_reward = beta * (wide(policy_rejected) - wide(ref_rejected))
    margin = chosen_reward - rejected_reward
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    with torch.no_grad():
        metrics = {
            "accuracy": _wins(chosen_reward, rejected_reward),
            "margin": mean_of(margin),
            "chosen_reward": mean_of(chosen_reward),
            "rejected_reward": mean_of(rejected_reward),
            "chosen_logprob": mean_of(policy_chosen),
            "rejected_logprob": mean_of(policy_rejected),
        }
    return LossOutput(mean_of(loss), metrics)
