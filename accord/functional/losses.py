"""The losses: pure functions of named tensors, each a masked sum over an explicit count, with detached metrics.

Metrics are means of the same kind, so that micro-batches, ranks and workers add exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from accord.functional.kl import k1, k3, kl_in_loss
from accord.functional.masked import keep, mean_of, mean_over, same_shape, wide
from accord.types import LossOutput, Mean


def _wins(a: Tensor, b: Tensor) -> Mean:
    """How often a > b; a tie is half a win, so that a model that tells nothing apart scores 1/2."""
    return mean_of((a > b).float() + (a == b).float() / 2)


def combine(*terms: tuple[float, LossOutput]) -> LossOutput:
    """The weighted sum of losses over the same count, with all their metrics.

    Raises ValueError where two terms name the same metric.
    """
    metrics: dict[str, Mean] = {}
    for _, term in terms:
        if doubled := metrics.keys() & term.metrics.keys():
            raise ValueError(f"two losses report {', '.join(sorted(doubled))}")
        metrics.update(term.metrics)
    total = torch.stack([weight * term.loss.total for weight, term in terms]).sum()
    return LossOutput(Mean(total, terms[0][1].loss.count), metrics)


def sft_loss(logprobs: Tensor) -> LossOutput:
    """Cross-entropy: -log p summed over the N labelled tokens.  ``logprobs`` (N,), no padding among them."""
    loss = mean_of(-logprobs)
    return LossOutput(loss, {"nll": loss.detach()})


def nll_loss(total: Tensor, count: int) -> LossOutput:
    """``sft_loss`` where the sum of -log p over ``count`` labels is known already."""
    loss = Mean(total, torch.tensor(count, device=total.device))
    return LossOutput(loss, {"nll": loss.detach()})


def mse_loss(pred: Tensor, target: Tensor) -> LossOutput:
    """Squared error, per element."""
    same_shape(target, pred=pred)
    error = wide(pred) - wide(target)
    return LossOutput(mean_of(error.square()), {"absolute_error": mean_of(error.detach().abs())})


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, center: float = 0.0
) -> LossOutput:
    """-log sigmoid(r_chosen - r_rejected - margin), per pair (Ouyang et al. 2022, eq. 1; margin: Llama 2, eq. 2).

    All (B,).  ``center`` weighs (r_chosen + r_rejected)^2, which pins the free constant of the rewards near 0
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

    All (B,): log-probabilities *summed* over the reply's tokens, the prompt's left out.  ``label_smoothing`` is the
    chance that a label is flipped (conservative DPO; Mitchell 2023, eq. 3).  ln 2 where policy and reference agree.
    The log-probabilities are reported apart, since the margin can grow while both fall.
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

    The maximum keeps the worse of the two, as in openai/baselines and lm-human-preferences.  None: no clip.
    """
    same_shape(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (keep(wide(x), mask) for x in (values, old_values, returns))
    loss = (values - returns).square()
    bites = torch.zeros_like(mask)
    if clip_range_value is not None:
        moved = values - old_values
        near = old_values + moved.clamp(-clip_range_value, clip_range_value)
        clipped = (near - returns).square()
        bites = (clipped > loss) & (moved.abs() > clip_range_value)  # inside, rounding alone tells them apart
        loss = torch.maximum(loss, clipped)
    metrics = {"value_clip_fraction": mean_over(bites, mask), "value": mean_over(values.detach(), mask)}
    return LossOutput(mean_over(loss / 2, mask), metrics)


def entropy_bonus(entropy: Tensor, mask: Tensor) -> LossOutput:
    """-entropy, per action: to be weighed with a positive coefficient and added to what is minimised."""
    return LossOutput(mean_over(-entropy, mask), {"entropy": mean_over(entropy.detach(), mask)})


def kl_penalty_loss(new: Tensor, ref: Tensor, mask: Tensor, estimator: str = "k2") -> LossOutput:
    """An estimate of KL(policy || reference) per action, for the loss; ``estimator`` "k2" or "k3" (``kl_in_loss``).

    ``new`` and ``ref`` are log-probabilities of actions drawn from the policy.  ``reference_kl`` is the unbiased k1.
    """
    same_shape(mask, new=new, ref=ref)
    log_ratio = keep(wide(new) - wide(ref), mask)
    metrics = {"reference_kl": mean_over(k1(log_ratio.detach()), mask)}
    return LossOutput(mean_over(kl_in_loss(estimator)(log_ratio), mask), metrics)
