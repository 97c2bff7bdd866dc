"""Rollouts sampled from weights of some rollouts before: what asynchronous sampling does, on one process and exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accord.types import Rollout


class TextRollouts(Protocol):
    """A source whose replies are a function of the iteration and the policy's weights, and which has no state."""

    def collect(self, iteration: int) -> Rollout: ...


@dataclass(frozen=True, slots=True)
class DelayedTextSource:
    """The rollouts of ``source``, which samples from ``policy``, with the weights that it had ``lag`` rollouts before.

    The first ``lag`` rollouts come from the initial weights, as they would where sampling runs ahead of training.  The state
    holds the weights of at most ``lag`` + 1 versions.
    """

    source: TextRollouts
    policy: nn.Module
    lag: int
    versions: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration, whose tokens name the version that sampled them."""
        newest = {name: x.detach().clone() for name, x in self.policy.state_dict().items()}
        self.versions[iteration] = newest
        version = max(0, iteration - self.lag)
        for number in [number for number in self.versions if number < version]:
            del self.versions[number]
        try:
            self.policy.load_state_dict(self.versions[version])
            rollout = self.source.collect(iteration)
        finally:
            self.policy.load_state_dict(newest)
        return replace(rollout, weight_versions=torch.full_like(rollout.weight_versions, version))

    def state_dict(self) -> dict[str, Any]:
        return {str(version): weights for version, weights in self.versions.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.versions.clear()
        self.versions.update({int(version): weights for version, weights in state.items()})
