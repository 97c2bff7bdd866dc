"""The position of training on rollouts: everything that a run stopped in the middle of a rollout needs to resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from accord.distributed import mesh
from accord.functional.kl import AdaptiveKL, FixedKL
from accord.training.epochs import share_of_step
from accord.training.updater import Uncounted
from accord.types import PolicyBatch, TextActions, VectorActions


@dataclass(frozen=True, slots=True)
class RolloutStats:
    """A rollout's statistics: those that set the KL coefficient, and those that are only logged."""

    kl: float  # nats per reply, summed over its tokens: what the KL coefficient adapts to
    replies: int  # replies (or episodes) that ended in the rollout
    metrics: Mapping[str, float] = field(default_factory=dict)


class RolloutProgress:
    """The iteration, the batch being trained on, its finished minibatches, and the KL coefficient."""

    def __init__(self, kl: FixedKL | AdaptiveKL) -> None:
        self.iteration = 0
        self.minibatch = 0  # of the current batch, counted over its epochs
        self.stopped_early = False
        self.batch: PolicyBatch | None = None
        self.stats = RolloutStats(0.0, 0)
        self.kl = kl

    def begin_rollout(self, batch: PolicyBatch, stats: RolloutStats) -> None:
        """Starts a new batch, with no minibatch finished."""
        self.batch, self.stats = batch, stats
        self.minibatch, self.stopped_early = 0, False

    def finish_rollout(self) -> None:
        """Moves to the next iteration, with the KL coefficient that the measured KL asks for."""
        self.kl = self.kl.update(self.stats.kl, self.stats.replies)
        self.iteration += 1
        self.batch = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "minibatch": self.minibatch,
            "stopped_early": self.stopped_early,
            "kl": self.kl.state(),
            "stats": {"kl": self.stats.kl, "replies": self.stats.replies, "metrics": dict(self.stats.metrics)},
            "batch": {} if self.batch is None else _batch_state(self.batch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration, self.minibatch = int(state["iteration"]), int(state["minibatch"])
        self.stopped_early = bool(state["stopped_early"])
        self.kl, self.stats = type(self.kl)(**state["kl"]), RolloutStats(**state["stats"])
        self.batch = _batch_of(state["batch"]) if state["batch"] else None


def minibatches(
    batch: PolicyBatch, size: int, micro_size: int, seed: int
) -> Iterator[list[PolicyBatch | Uncounted[PolicyBatch]]]:
    """Every row once, ``size`` rows a minibatch, each cut into forward passes of ``micro_size`` rows (0: one pass).

    The order of the rows is drawn by ``seed``; one minibatch of all rows is the batch itself, since sums have no order.
    Of several ranks each gets a share of every minibatch, so that together they take the steps of one.
    """
    if size >= len(batch) and not micro_size and mesh.size() == 1:
        yield [batch]
        return
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    lengths = batch.mask.sum(1).tolist()
    for rows in torch.split(order, size):
        passes = share_of_step(rows.tolist(), lengths, micro_size)
        parts = [(batch[torch.tensor(part, device=batch.mask.device)], counted) for part, counted in passes]
        yield [part if counted else Uncounted(part) for part, counted in parts]


def _batch_state(batch: PolicyBatch) -> dict[str, Any]:
    state: dict[str, Any] = batch.tensors()
    if isinstance(batch.inputs, TextActions):
        inputs = batch.inputs
        text = {"prompts": [list(p) for p in inputs.prompts], "responses": inputs.responses}
        return {**state, "text": {**text, "ref_logprobs": inputs.ref_logprobs}}
    return {**state, "vector": {"observations": batch.inputs.observations, "actions": batch.inputs.actions}}


def _batch_of(state: Mapping[str, Any]) -> PolicyBatch:
    tensors = {name: value for name, value in state.items() if name not in ("text", "vector")}
    inputs: TextActions | VectorActions
    if "text" in state:
        text = state["text"]
        prompts = tuple(tuple(p) for p in text["prompts"])
        inputs = TextActions(prompts, text["responses"], state["mask"], text["ref_logprobs"])
    else:
        inputs = VectorActions(**state["vector"])
    return PolicyBatch(inputs, **tensors)
