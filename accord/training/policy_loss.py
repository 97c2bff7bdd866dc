"""A policy's loss as a list of weighted terms: what PPO and its relatives minimize over a ``PolicyBatch``.

A term is a small frozen dataclass, so that a fast path can read its numbers and refuse one that it does not compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from accord.functional.losses.policy import entropy_bonus, kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from accord.functional.losses.terms import combine
from accord.types import LossOutput, PolicyBatch, TextActions


@dataclass(frozen=True, slots=True)
class ActionScores:
    """Current-policy scores of rollout actions, (B, T) each; undefined under the mask."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None  # None without a critic


class LossTerm(Protocol):
    """One term: a masked sum over its count, with its metrics."""

    def __call__(self, scores: ActionScores, batch: PolicyBatch) -> LossOutput: ...


@dataclass(frozen=True, slots=True)
class ClippedSurrogate:
    """PPO's policy loss (Schulman et al. 2017, eq. 7)."""

    clip_range: float

    def __call__(self, scores: ActionScores, batch: PolicyBatch) -> LossOutput:
        output = ppo_policy_loss(scores.logprobs, batch.old_logprobs, batch.advantages, batch.mask, self.clip_range)
        return LossOutput(output.loss, {"policy_loss": output.loss.detach(), **output.metrics})


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Half the squared error of the critic, clipped around the old values; ``clip_range`` 0: not clipped."""

    clip_range: float

    def __call__(self, scores: ActionScores, batch: PolicyBatch) -> LossOutput:
        if scores.values is None or batch.values is None or batch.returns is None:
            raise ValueError("the value loss needs a critic: values of the policy, values and returns of the batch")
        output = ppo_value_loss(scores.values, batch.values, batch.returns, batch.mask, self.clip_range or None)
        return LossOutput(output.loss, {"value_loss": output.loss.detach(), **output.metrics})


@dataclass(frozen=True, slots=True)
class EntropyBonus:
    """Minus the entropy.  ``metric_only``: no gradient, which spares a backward pass over the logits."""

    metric_only: bool = False

    def __call__(self, scores: ActionScores, batch: PolicyBatch) -> LossOutput:
        return entropy_bonus(scores.entropy.detach() if self.metric_only else scores.entropy, batch.mask)


@dataclass(frozen=True, slots=True)
class ReferenceKL:
    """An estimate of KL(policy || reference): ``k2`` or ``k3``."""

    estimator: str

    def __call__(self, scores: ActionScores, batch: PolicyBatch) -> LossOutput:
        if not isinstance(batch.inputs, TextActions):
            raise TypeError("the KL term needs the reference's log-probs, which only text has")
        return kl_penalty_loss(scores.logprobs, batch.inputs.ref_logprobs, batch.mask, self.estimator)


Score = Callable[[Any], ActionScores]
"""From a batch's inputs to the current policy's scores of its actions."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The weighted sum of the terms, all over the batch's valid actions."""

    score: Score
    terms: Sequence[tuple[float, LossTerm]]

    def __call__(self, batch: PolicyBatch) -> LossOutput:
        scores = self.score(batch.inputs)
        return combine(*((weight, term(scores, batch)) for weight, term in self.terms))
