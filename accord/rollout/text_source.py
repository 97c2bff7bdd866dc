"""Rollouts of a language policy, one iteration after another: a function of the seed, the iteration and the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.models.backbone import Backbone
from accord.rollout.collect import TextTask, collect
from accord.rollout.noise import reply_keys
from accord.runtime.device import autocast
from accord.runtime.run import Run
from accord.types import Rollout


@dataclass(frozen=True, slots=True)
class TextSource:
    """Replies to ``prompts_per_rollout`` prompts an iteration, sampled from ``sampler()``, a model on ``device``."""

    run: Run
    task: TextTask
    sampler: Callable[[], Backbone]
    prompts_per_rollout: int
    device: torch.device
    precision: str = "float32"
    readout: Callable[[Tensor], Tensor] | None = None  # see ``collect``

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration."""
        with autocast(self.device, self.precision):
            rows = self.prompt_rows(iteration)
            keys = reply_keys(self.run.seed, "sampling", iteration, rows, self.task.samples_per_prompt)
            return collect(self.task, self.sampler(), rows, keys, iteration, self.readout)

    def prompt_rows(self, iteration: int) -> list[int]:
        """The prompts of an iteration: each once before any repeats, in a new order every round."""
        total, needed = len(self.task.prompts), self.prompts_per_rollout
        rows = []
        for k in range(iteration * needed, (iteration + 1) * needed):
            order = torch.randperm(total, generator=self.run.generator("prompts", k // total))
            rows.append(int(order[k % total]))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Empty: a rollout depends on the seed, the iteration and the weights alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
