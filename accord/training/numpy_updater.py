"""``Updater`` for the small networks of plain PPO: the same step, without torch's cost for each operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from accord.algorithms.ppo_core import PPOObjective
from accord.config.common import Optimizer
from accord.kernels.numpy_actor_critic import HandGradient, Steps, Weights, has_hand_gradient
from accord.models.heads import AnyActorCritic
from accord.training.updater import adapted, not_finite, schedule_factor
from accord.types import PPOBatch, VectorActions

COMPILED_FROM = 2000
"""Optimizer steps from which on the compiled passes repay their loading."""


def hand_for(model: AnyActorCritic, settings: Optimizer, total_steps: int) -> HandGradient | None:
    """The quick path's view of a model; None where only the plain one serves: a GPU, a shared trunk, weight decay."""
    if settings.weight_decay or not has_hand_gradient(model):
        return None
    return HandGradient(model, compiled=total_steps >= COMPILED_FROM)


class HandUpdater:
    """Adam (Kingma and Ba 2015) with a schedule and a clipped global norm, on the flat arrays of a ``HandGradient``."""

    def __init__(self, hand: HandGradient, settings: Optimizer, total_steps: int) -> None:
        self.hand, self.settings, self.total_steps = hand, settings, total_steps
        self.device = torch.device("cpu")
        self.steps = 0
        self.adaptive = 1.0
        self.first, self.second, self.work = (np.zeros_like(hand.flat) for _ in range(3))
        self.unpacked: tuple[PPOBatch | None, Steps] = (None, Steps(*[np.zeros(0, dtype=np.float32)] * 6))

    def step(self, batch: Sequence[PPOBatch], objective: PPOObjective) -> dict[str, float]:
        """As ``Updater.step``; the objective gives its numbers, its loss and gradient come from ``HandGradient``."""
        hand, weights = self.hand, _weights(objective)
        count = 0
        sums: dict[str, float] = {}
        gradient = hand.gradient
        for number, micro in enumerate(batch):
            if micro is not self.unpacked[0]:  # one batch of all comes again in every epoch
                self.unpacked = (micro, _taken(micro))
            steps = self.unpacked[1]
            count += len(steps.logprobs)
            found = hand.differentiate(steps, weights)
            sums = {key: sums.get(key, 0.0) + value for key, value in found.items()} if number else found
            if len(batch) > 1:
                gradient = gradient + hand.gradient if number else hand.gradient.copy()
        count = max(count, 1)
        metrics = {key: value / count for key, value in sums.items()}
        norm = math.sqrt(float(np.dot(gradient, gradient))) / count
        if not (math.isfinite(norm) and math.isfinite(metrics["loss"])):
            raise not_finite(self.steps + 1, metrics["loss"], norm)
        rate = self.settings.learning_rate * self.adaptive
        rate *= schedule_factor(self.settings.schedule, self.steps, self.total_steps, self.settings.warmup_steps)
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
        self.hand.flat -= work

    def adapt_to_kl(self, approx_kl: float, target: float) -> None:
        self.adaptive = adapted(self.adaptive, approx_kl, target)

    def state_dict(self) -> dict[str, Any]:
        moments = {"first": torch.tensor(self.first), "second": torch.tensor(self.second)}
        return {**moments, "steps": self.steps, "adaptive": self.adaptive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first[:], self.second[:] = state["first"].numpy(), state["second"].numpy()
        self.steps, self.adaptive = int(state["steps"]), float(state["adaptive"])


def _weights(objective: PPOObjective) -> Weights:
    settings = objective.settings
    return Weights(
        settings.clip_range, settings.clip_range_vf, settings.vf_coef, settings.ent_coef, objective.policy_weight
    )


def _taken(batch: PPOBatch) -> Steps:
    """The rows whose action was taken."""
    assert isinstance(batch.inputs, VectorActions)
    arrays = [x.numpy() for x in (batch.inputs.observations, batch.inputs.actions)]
    arrays += [x.numpy()[:, 0] for x in (batch.logprobs, batch.values, batch.advantages, batch.returns)]
    mask = batch.mask.numpy()[:, 0]
    return Steps(*arrays) if mask.all() else Steps(*(x[mask] for x in arrays))
