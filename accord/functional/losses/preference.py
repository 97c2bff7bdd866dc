"""Losses over pairs of replies, of which one is preferred."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from accord.functional.masked import mean_of, mean_over, same_shape, wide
from accord.types import LossOutput, Mean, SoftLabels


def wins(a: Tensor, b: Tensor, soft: SoftLabels | None = None) -> Mean:
    """How often a > b; equal scores are half a win, so that a constant model scores 1/2.

    With soft labels: how often the likelier reply scores higher, over the pairs that are no ties.
    """
    won = (a > b).float() + (a == b).float() / 2
    if soft is None:
        return mean_of(won)
    return mean_over(torch.where(soft.labels > 0.5, won, 1 - won), soft.labels != 0.5)


def cross_entropy(logits: Tensor, soft: SoftLabels | None) -> Tensor:
    """(B,) -log sigmoid(logits) where the label is 1; in general -y log sigmoid(x) - (1 - y) log sigmoid(-x), weighted."""
    if soft is None:
        return -logsigmoid(logits)
    same_shape(logits, labels=soft.labels, weights=soft.weights)
    return -soft.weights * (soft.labels * logsigmoid(logits) + (1 - soft.labels) * logsigmoid(-logits))


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margins: Tensor | None = None,
    center: float = 0.0,
    soft: SoftLabels | None = None,
) -> LossOutput:
    """-log sigmoid(r_chosen - r_rejected - margin), per pair (Ouyang et al. 2022, eq. 1; margin: Llama 2, eq. 2).

    All (B,).  ``center`` is the weight of (r_chosen + r_rejected)^2, which keeps the free constant of the rewards near 0
    (Eisenstein et al. 2023).  ``soft`` makes it a cross-entropy with the probability that chosen is preferred (a tie is
    1/2), each pair times its weight; the count stays that of the pairs.
    """
    same_shape(chosen, rejected=rejected)
    chosen, rejected = wide(chosen), wide(rejected)
    difference = chosen - rejected
    if margins is None:
        loss = cross_entropy(difference, soft)
    else:
        same_shape(chosen, margins=margins)
        loss = cross_entropy(difference - margins, soft)
    if center:
        pull = center * (chosen + rejected).square()
        loss = loss + (pull if soft is None else soft.weights * pull)
    with torch.no_grad():
        metrics = {
            "accuracy": wins(chosen, rejected, soft),
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
    soft: SoftLabels | None = None,
) -> LossOutput:
    """-log sigmoid(beta * (policy_logratios - ref_logratios)), per pair (Rafailov et al. 2023, eq. 7).

    All (B,): log-probabilities *summed* over the reply's tokens, without the prompt's.  ``label_smoothing`` is the
    probability that a label is flipped (conservative DPO; Mitchell 2023, eq. 3).  ln 2 where policy and reference agree.
    ``soft`` replaces the label 1 by the probability that chosen is preferred, before smoothing, and weights each pair.
    The log-probabilities are reported separately, since the margin can grow while both fall.
    """
    same_shape(policy_chosen, policy_rejected=policy_rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    chosen_reward = beta * (wide(policy_chosen) - wide(ref_chosen))
    rejected_reward = beta * (wide(policy_rejected) - wide(ref_rejected))
    margin = chosen_reward - rejected_reward
    if soft is None:
        loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    else:
        smooth = soft.labels * (1 - 2 * label_smoothing) + label_smoothing
        loss = cross_entropy(margin, SoftLabels(smooth, soft.weights))
    with torch.no_grad():
        metrics = {
            "accuracy": wins(chosen_reward, rejected_reward, soft),
            "margin": mean_of(margin),
            "chosen_reward": mean_of(chosen_reward),
            "rejected_reward": mean_of(rejected_reward),
            "chosen_logprob": mean_of(policy_chosen),
            "rejected_logprob": mean_of(policy_rejected),
        }
    return LossOutput(mean_of(loss), metrics)
