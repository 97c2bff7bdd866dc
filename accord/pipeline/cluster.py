"""The cluster that a pipeline's stages run on, and what each takes of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accord.config.common import ParallelStage, Stage
from accord.config.feedback import JudgeConfig
from accord.errors import UserError
from accord.io.atomic import write_text
from accord.pipeline.plan import Planned
from accord.runtime.console import console


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster: the probe by which a node finds whether it sees this disk, and what it has."""

    probe: Path
    content: str
    cpus: int
    gpus: float
    say: Callable[[str], None]


def address_of(on: str) -> str | None:
    """The cluster's address in ``ray`` or ``ray=ADDRESS``, empty for one of this machine; None for no cluster."""
    if not on:
        return None
    name, _, address = on.partition("=")
    if name != "ray" or (on != "ray" and not address):
        raise UserError(f"--on {on}: write --on ray, --on ray=auto or --on ray=HOST:PORT.")
    return address


@contextmanager
def cluster_for(stages: Sequence[Planned], address: str, out: Path) -> Iterator[Place]:
    """Connects to a cluster, until the end of the block.

    Raises UserError where it cannot be reached, or has no node that a stage fits on.
    """
    from accord.distributed.ray.cluster import connected

    with connected(address, "--on ray") as nodes:
        gpus = sum(node.gpus for node in nodes)
        for stage in stages:
            cpus, own_gpus = demand(stage.config, gpus)
            if runs_elsewhere(stage.config) and not any(n.cpus >= cpus and n.gpus >= own_gpus for n in nodes):
                largest = max(nodes, key=lambda node: (node.gpus, node.cpus))
                with_gpus = f" and {own_gpus} GPUs" if own_gpus else ""
                raise UserError(
                    f"stage {stage.name!r}: takes {cpus} CPUs{with_gpus} of one node (threads, parallel.nproc, device), and the"
                    f" largest has {largest.cpus:g} and {largest.gpus:g} GPUs; lower them, or add a node."
                )
        token = secrets.token_hex(16)
        probe = out.absolute() / f".{token}.probe.tmp"
        try:
            write_text(probe, token)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror}); choose another with out=.") from None
        try:
            yield Place(probe, token, int(sum(node.cpus for node in nodes)), gpus, partial(console.print, markup=False))
        finally:
            probe.unlink(missing_ok=True)


def demand(config: Stage, gpus: float) -> tuple[int, int]:
    """The CPUs and GPUs that a stage takes of one node, where the cluster has ``gpus``."""
    processes = config.parallel.nproc if isinstance(config, ParallelStage) else 1
    uses_gpu = config.device.startswith("cuda") or (config.device == "auto" and gpus > 0)
    return max(config.threads, 1) * processes, processes if uses_gpu else 0


def runs_elsewhere(config: Stage) -> bool:
    """Whether a stage may run on another node: not one that asks people, or brings its own rollout workers."""
    if isinstance(config, JudgeConfig) and config.asks_people:
        return False
    rollout = getattr(config, "rollout", None)
    return getattr(rollout, "engine", "local") == "local"
