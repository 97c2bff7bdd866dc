"""PPO's stage in float64, run by the pair of ranks or by one process: what it samples, its steps, gradients and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from accord.algorithms import ppo
from accord.config.on_policy import LanguagePPOConfig
from accord.distributed import mesh
from accord.errors import Interrupted
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.open import open_backbone
from accord.models.reward import RewardModel
from accord.runtime.run import Ranks, Run, StageIdentity
from accord.training.updater import Updater
from accord.types import PolicyBatch, Rollout


def whole(x: Tensor) -> Tensor:
    """The values of a tensor, sharded or not."""
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


def double(source: str, tokenizer: object, device: torch.device) -> Backbone:
    return open_backbone(source).double().to(device).eval()


@contextmanager
def watched(found: dict[str, Tensor], steps: list[dict[str, float]], stop_after: int) -> Iterator[None]:
    """Records rollouts, batches and steps; the user asks to stop after so many steps (0: never)."""
    step, prepare, run_tick, open_reward = Updater.step, ppo.prepare, Run.tick, RewardModel.open

    def recorded_step(self: Updater, *arguments: Any) -> dict[str, float]:
        metrics = step(self, *arguments)
        steps.append(metrics)
        for number, parameter in enumerate(self.parameters):
            found[f"gradient/{len(steps)}/{number}"] = whole(parameter.grad)
            found[f"weight/{len(steps)}/{number}"] = whole(parameter)
        return metrics

    def recorded_prepare(rollout: Rollout, *arguments: Any) -> tuple[PolicyBatch, Any]:
        batch, stats = prepare(rollout, *arguments)
        where = f"rollout/{len(steps)}/"
        generation = rollout.generation
        found.update({where + name: whole(x) for name, x in batch.tensors().items()})
        found[where + "responses"] = generation.responses.clone()
        found[where + "behavior"] = generation.logprobs.clone()
        found[where + "ref"] = rollout.ref_logprobs.clone()
        found[where + "scores"] = rollout.scores.clone()
        found[where + "rows"] = rollout.prompt_rows.clone()
        found[where + "stats"] = torch.tensor([stats.kl, *stats.metrics.values()]).double()
        return batch, stats

    def tick(self: Run, metrics: dict[str, float]) -> None:
        run_tick(self, metrics)
        if self.step == stop_after and mesh.rank() == mesh.size() - 1:  # the signal may reach one rank alone
            self.stop.raised = True

    with (
        mock.patch.object(ppo, "open_policy", double),
        mock.patch.object(ppo, "LanguageActorCritic", lambda *arguments: LanguageActorCritic(*arguments).double()),
        mock.patch.object(ppo, "save_model"),
        mock.patch.object(ppo, "prepare", recorded_prepare),
        mock.patch.object(Updater, "step", recorded_step),
        mock.patch.object(RewardModel, "open", lambda source: open_reward(source).double()),
        mock.patch.object(Run, "tick", tick),
    ):
        yield


def train(values: dict[str, Any], folder: str, file: str, resume: bool = False, stop_after: int = 0) -> dict[str, Any]:
    """Runs the stage; rank 0 writes the recorded tensors to ``file``.  Returns the metrics of every step."""
    config = LanguagePPOConfig.model_validate(values)
    identity = StageIdentity("ppo", Path(folder) / "out", Path(folder) / "logs", config.seed, "key")
    found: dict[str, Tensor] = {}
    steps: list[dict[str, float]] = []
    ranks = Ranks(mesh.is_main(), mesh.anywhere)
    stopped = False
    with watched(found, steps, stop_after), Run(identity, 1, 100, resume, False, ranks=ranks) as run:
        try:
            ppo.train(config, run)
        except Interrupted:
            stopped = True
    if mesh.is_main():
        save_file({name: x.contiguous() for name, x in found.items()}, file)
    return {"steps": steps, "stopped": stopped}
