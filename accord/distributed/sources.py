"""Where the rollouts of text come from: this process, all ranks, workers on Ray, or a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from accord.config.on_policy import LanguagePPOConfig
from accord.distributed import mesh
from accord.distributed.ray.cluster import connected, require_cpus, require_ray
from accord.distributed.ray.ledger import FORMAT, NAME, Header, Ledger
from accord.distributed.ray.place import Place
from accord.distributed.ray.pool import Pool
from accord.distributed.ray.pump import Pump
from accord.distributed.ray.replay import ReplayedRollouts, threads
from accord.distributed.ray.source import RemoteRollouts
from accord.distributed.ray.worker import OpenTask, TextWorker, WorkerSetup
from accord.distributed.rollouts import DividedTextSource, from_main
from accord.distributed.shards import gathered
from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.rollout.chunks import ChunkedTextSource, Chunks
from accord.rollout.delayed_source import DelayedTextSource
from accord.rollout.text_source import TextSource
from accord.runtime.run import Run
from accord.types import Rollout


class RolloutSource(Protocol):
    """Gives the rollout of each iteration, and has a state."""

    def collect(self, iteration: int) -> Rollout: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def require_chunks(config: LanguagePPOConfig, prompts: int) -> None:
    """Raises UserError for settings of ``rollout`` that do not fit rollouts of ``prompts``, or others."""
    settings, fsdp = config.rollout, config.parallel.strategy == "fsdp"
    if prompts % settings.prompts_in_chunk(prompts):
        raise UserError(
            f"rollout.chunk_prompts={settings.chunk_prompts} does not divide the {prompts} prompts of a rollout"
            " (training.replies / training.samples_per_prompt); choose a divisor, or 0."
        )
    if settings.chunk_prompts and settings.engine == "local" and (mesh.size() > 1 or fsdp):
        raise UserError(
            "rollout.chunk_prompts is for one process, or rollout.engine=ray; several processes divide the prompts themselves."
        )
    if settings.in_flight_updates and config.sampling.weights != "float32":
        raise UserError(
            f"sampling.weights={config.sampling.weights} makes a copy for each chunk, which rollout.in_flight_updates cannot"
            " change between tokens; use sampling.weights=float32."
        )
    if settings.engine == "ray" and settings.score == "learner" and fsdp:
        raise UserError(
            "rollout.score=learner scores on one rank, and with fsdp none has the whole models; use workers."
        )
    if settings.replay and fsdp:
        raise UserError("rollout.replay stores whole weights, which no rank of fsdp has; use parallel.strategy=ddp.")


@contextmanager
def text_rollouts(
    config: LanguagePPOConfig, alone: TextSource, policy: Backbone, judges: Sequence[nn.Module], open_task: OpenTask
) -> Iterator[RolloutSource]:
    """The source of rollouts that the config names, until the end of the block; ``alone`` samples in this process.

    ``judges``: models whose shards are gathered while replies are scored.  ``open_task``: what a worker opens.
    Raises UserError where the cluster cannot do the work, or the ledger is of another run.
    """
    settings = config.rollout
    chunks = Chunks(alone, settings.prompts_in_chunk(alone.prompts_per_rollout))
    if settings.replay:
        replayed = ReplayedRollouts(
            Path(settings.replay), header(config, alone.run), chunks, policy, settings, config.sampling.weights
        )
        with threads(replayed.threads):
            yield replayed
            replayed.finish()
        alone.run.say(f"the weights are those of the run that wrote {settings.replay}")
    elif settings.engine == "ray":
        with remote_rollouts(config, chunks, open_task) as remote:
            source = SharedRollouts(remote, alone, policy)
            yield source
            source.finish()
    elif mesh.size() > 1 or config.parallel.strategy == "fsdp":
        yield DividedTextSource(alone, judges)
    elif settings.lag:
        yield DelayedTextSource(
            ChunkedTextSource(alone, chunks) if settings.chunk_prompts else alone, policy, settings.lag
        )
    elif settings.chunk_prompts:
        yield ChunkedTextSource(alone, chunks)
    else:
        yield alone


@contextmanager
def remote_rollouts(config: LanguagePPOConfig, chunks: Chunks, open_task: OpenTask) -> Iterator[RemoteRollouts | None]:
    """The rollouts of workers on Ray, on rank 0; None on the others."""
    if not mesh.is_main():
        yield None
        return
    ray, settings, run = require_ray(), config.rollout, chunks.source.run
    with ExitStack() as stack:
        nodes = stack.enter_context(connected(settings.address))
        require_cpus(nodes, settings.workers, settings.threads)
        actor = ray.remote(TextWorker).options(
            num_cpus=settings.threads, num_gpus=settings.gpus, max_concurrency=2 if settings.in_flight_updates else 1
        )
        setup = WorkerSetup(type(config), config.model_dump(), open_task, chunks.replies_per_rollout, Place.here())
        place = ray.put(setup)
        pool = Pool(lambda number: actor.remote(number, place), settings.workers, settings.timeout_seconds, run.say)
        pump = Pump(pool, settings.workers, chunks, settings.in_flight_updates)
        stack.callback(pump.close)
        ledger = Ledger(run.directory / NAME, header(config, run))
        yield RemoteRollouts(chunks, pump, ledger, settings)


def header(config: LanguagePPOConfig, run: Run) -> Header:
    """A ledger's first line, as this process would write it."""
    return Header(
        format=FORMAT,
        seed=run.seed,
        threads=torch.get_num_threads(),
        ranks=mesh.size(),
        worker_threads=config.rollout.threads,
        device=mesh.local_device(config.device).type,
        settings=dict(run.settings),
        inputs=dict(run.parents),
    )


@dataclass(frozen=True, slots=True)
class SharedRollouts:
    """Rollouts that rank 0 gets from elsewhere, on every rank."""

    remote: RemoteRollouts | None
    """None on other ranks than 0."""
    alone: TextSource
    policy: Backbone

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration, whole on every rank."""
        rollout = None
        mesh.at(f"the rollout of iteration {iteration}")
        with gathered(self.policy):
            if self.remote is not None:
                rollout, metrics = self.remote.collect(iteration, self.policy)
        if rollout is not None:
            self.alone.run.record(metrics, prefix="ray/")
        return from_main(rollout, self.alone.device)

    def finish(self) -> None:
        """Writes the digest of the final weights to the ledger."""
        with gathered(self.policy):
            if self.remote is not None:
                self.remote.finish(self.policy)

    def state_dict(self) -> dict[str, Any]:
        """Rank 0's, which alone is saved."""
        return self.remote.state_dict() if self.remote else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the rollouts that the state knows of."""
        if self.remote is not None:
            self.remote.load_state_dict(state)
