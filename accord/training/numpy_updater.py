"""``Updater`` for the small networks of PPO on vectors: the same step without torch's cost for each operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from accord.config.common import Optimizer
from accord.kernels.numpy_actor_critic import LossCoefficients, NumpyActorCritic, StepBatch
from accord.training.policy_loss import ClippedSurrogate, EntropyBonus, PolicyLoss, ValueLoss
from accord.training.updater import adapt_factor, not_finite, schedule_factor
from accord.types import PolicyBatch, VectorActions

MIN_STEPS_FOR_JIT = 2000
"""Runs of fewer optimizer steps do not recover the time of loading the compiled passes."""


class NumpyUpdater:
    """Adam (Kingma and Ba 2015) with a schedule and a clipped global norm, on the flat arrays of a ``NumpyActorCritic``.

    Raises ValueError for weight decay, which it does not compute.
    """

    def __init__(self, networks: NumpyActorCritic, settings: Optimizer, total_steps: int) -> None:
        if settings.weight_decay:
            raise ValueError("NumpyUpdater computes no weight decay; use Updater")
        self.networks, self.settings, self.total_steps = networks, settings, total_steps
        self.device = torch.device("cpu")
        self.steps = 0
        self.adaptive = 1.0
        self.first, self.second, self.work = (np.zeros_like(networks.flat) for _ in range(3))
        self.unpacked: tuple[PolicyBatch | None, StepBatch] = (None, StepBatch(*[np.zeros(0, dtype=np.float32)] * 6))

    def step(
        self, batch: Sequence[PolicyBatch], objective: PolicyLoss, schedule_step: int | None = None
    ) -> dict[str, float]:
        """As ``Updater.step``; the objective gives its terms, the networks compute loss and gradient.

        Raises TypeError for a term that the networks do not compute.
        """
        networks, coefficients = self.networks, coefficients_of(objective)
        count = 0
        sums: dict[str, float] = {}
        gradient = networks.gradient
        for number, micro in enumerate(batch):
            if micro is not self.unpacked[0]:  # a single minibatch of all rows is the same object in every epoch
                self.unpacked = (micro, valid_steps(micro))
            steps = self.unpacked[1]
            count += len(steps.old_logprobs)
            found = networks.differentiate(steps, coefficients)
            sums = {key: sums.get(key, 0.0) + value for key, value in found.items()} if number else found
            if len(batch) > 1:
                gradient = gradient + networks.gradient if number else networks.gradient.copy()
        count = max(count, 1)
        metrics = {key: value / count for key, value in sums.items()}
        norm = math.sqrt(float(np.dot(gradient, gradient))) / count
        if not (math.isfinite(norm) and math.isfinite(metrics["loss"])):
            raise not_finite(self.steps + 1, metrics["loss"], norm)
        position = self.steps if schedule_step is None else schedule_step
        rate = self.settings.peak_rate * self.adaptive
        rate *= schedule_factor(self.settings.schedule, position, self.total_steps, self.settings.warmup_steps)
        self.steps += 1
        self._adam(gradient, min(1.0, self.settings.max_grad_norm / (norm + 1e-6)) / count, rate)
        return {**metrics, "grad_norm": norm, "learning_rate": rate}

    def _adam(self, gradient: np.ndarray, scale: float, rate: float) -> None:
        """A step down ``gradient * scale``; overwrites ``gradient`` and makes no array."""
        beta1, beta2, work = 0.9, self.settings.adam_beta2, self.work
        self.first *= np.float32(beta1)
        self.first += np.multiply(gradient, np.float32((1 - beta1) * scale), out=work)
        self.second *= np.float32(beta2)
        gradient *= np.float32(math.sqrt(1 - beta2) * scale)
        self.second += np.multiply(gradient, gradient, out=work)
        np.sqrt(self.second, out=work)
        work *= np.float32(1 / math.sqrt(1 - beta2**self.steps))
        work += np.float32(self.settings.adam_eps)
        np.divide(self.first, work, out=work)
        work *= np.float32(rate / (1 - beta1**self.steps))
        self.networks.flat -= work

    def adapt_to_kl(self, approx_kl: float, target: float) -> None:
        self.adaptive = adapt_factor(self.adaptive, approx_kl, target)

    def state_dict(self) -> dict[str, Any]:
        moments = {"first": torch.tensor(self.first), "second": torch.tensor(self.second)}
        return {**moments, "steps": self.steps, "adaptive": self.adaptive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first[:], self.second[:] = state["first"].numpy(), state["second"].numpy()
        self.steps, self.adaptive = int(state["steps"]), float(state["adaptive"])


def coefficients_of(objective: PolicyLoss) -> LossCoefficients:
    """The coefficients of a loss of a clipped surrogate, a value loss and an entropy bonus, each once, in any order.

    Raises TypeError for any other or a missing term: ignoring one would train something else.
    """
    by_kind = {type(term): (weight, term) for weight, term in objective.terms}
    expected = {ClippedSurrogate, ValueLoss, EntropyBonus}
    if by_kind.keys() != expected or len(objective.terms) != len(expected):
        names = ", ".join(type(term).__name__ for _, term in objective.terms)
        raise TypeError(
            f"the NumPy path computes ClippedSurrogate, ValueLoss and EntropyBonus, once each, not {names}; use Updater"
        )
    (policy, surrogate), (value, value_loss) = by_kind[ClippedSurrogate], by_kind[ValueLoss]
    (entropy, bonus) = by_kind[EntropyBonus]
    assert isinstance(surrogate, ClippedSurrogate) and isinstance(value_loss, ValueLoss)  # noqa: PT018
    assert isinstance(bonus, EntropyBonus)
    return LossCoefficients(
        policy, surrogate.clip_range, value, value_loss.clip_range, 0.0 if bonus.metric_only else entropy
    )


def valid_steps(batch: PolicyBatch) -> StepBatch:
    """The rows under the mask as arrays.  Raises TypeError for text, or a batch without values and returns."""
    if not isinstance(batch.inputs, VectorActions) or batch.values is None or batch.returns is None:
        raise TypeError("the NumPy path takes observations and actions, with a critic's values and returns")
    arrays = [x.numpy() for x in (batch.inputs.observations, batch.inputs.actions)]
    arrays += [x.numpy()[:, 0] for x in (batch.old_logprobs, batch.values, batch.advantages, batch.returns)]
    mask = batch.mask.numpy()[:, 0]
    return StepBatch(*arrays) if mask.all() else StepBatch(*(x[mask] for x in arrays))
