"""How every stage of a pipeline stands: done, running, failed, interrupted, or what would make it run."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accord.errors import UserError
from accord.io.readers import read_record
from accord.pipeline.failure import read_failure
from accord.pipeline.lock import alive, owner
from accord.pipeline.plan import Planned
from accord.pipeline.records import BEGUN, read_done
from accord.pipeline.references import require, resolve
from accord.pipeline.task import task_of, valid_record
from accord.pipeline.why import NEVER, differences
from accord.runtime.progress_file import ProgressFile

State = Literal["done", "running", "failed", "interrupted", "runs", "may run"]
FIGURES = ("rollout/score", "rollout/episode_return", "rollout/kl", "heldout_accuracy", "accuracy", "loss", "gold")


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage's state, a few words on it, and the reasons why it would run."""

    name: str
    state: State
    words: str = ""
    reasons: tuple[str, ...] = ()


def standings(
    planned: Sequence[Planned], folders: Mapping[str, Path], forced: Collection[str] = ()
) -> dict[str, Standing]:
    """In the plan's order.  Nothing is changed; inputs are read for their digests."""
    found: dict[str, Standing] = {}
    for stage in planned:
        before = [name for name in stage.needs if name in found and found[name].state != "done"]
        found[stage.name] = _standing(stage, folders, before, stage.name in forced)
    return found


def _standing(stage: Planned, folders: Mapping[str, Path], before: Sequence[str], forced: bool) -> Standing:
    directory = folders[stage.name]
    lock = owner(directory)
    if lock and alive(lock):
        return Standing(stage.name, "running", f"pid {lock.get('pid')}, {how_far(directory)}")
    are = "which are" if len(before) > 1 else "which is"
    waits = (f"it takes {' and '.join(before)}, {are} not done as the file has it",) if before else ()
    done = read_done(directory)
    try:
        config = resolve(stage.kind, stage.config, folders.get)
        require(config, stage.kind, list(folders))
        task = task_of(stage.kind, config)
    except UserError as error:
        return Standing(stage.name, "runs", "", (*_unless_done(directory), *(waits or (str(error),))))
    failed, begun = read_failure(directory), read_record(directory / BEGUN)
    reasons = tuple(differences(task, forced))
    if failed.get("key") == task.key and not done:
        return Standing(stage.name, "failed", str(failed["error"]), (*reasons, *waits))
    if begun.get("key") == task.key and not done:
        return Standing(stage.name, "interrupted", how_far(directory), (*reasons, *waits))
    if valid_record(task) and not forced:
        return Standing(stage.name, "may run" if waits else "done", took(done), waits)
    return Standing(stage.name, "runs", "", (*reasons, *waits))


def _unless_done(directory: Path) -> tuple[str, ...]:
    return () if read_done(directory) else (NEVER,)


def progress(directory: Path) -> dict[str, Any]:
    """What progress.json says; empty where there is none."""
    return read_record(directory / ProgressFile.NAME)


def time_left(beat: Mapping[str, Any]) -> float | None:
    """Seconds to the last step at the pace since the stage (last) began; None before there is a pace."""
    steps = beat["step"] - beat["first"]
    return (beat["updated"] - beat["begun"]) / steps * (beat["total"] - beat["step"]) if steps > 0 else None


def how_far(directory: Path) -> str:
    """``step 40 of 168, 2 min left, score 0.8``."""
    beat = progress(directory)
    if not beat:
        return "no step yet"
    left = time_left(beat)
    parts = [f"step {beat['step']} of {beat['total']}", f"{span(left)} left" if left else "", figures(beat["metrics"])]
    return ", ".join(part for part in parts if part)


def figures(metrics: Mapping[str, float]) -> str:
    """Those that one wants to see first: reward and KL where there are, at most three."""
    names = [name for name in FIGURES if name in metrics] or list(metrics)
    return "  ".join(f"{name.rpartition('/')[2]} {metrics[name]:.3g}" for name in names[:3])


def took(done: Mapping[str, Any]) -> str:
    """``12 s, 3 h ago``."""
    ago = f", {span(time.time() - done['finished'])} ago" if "finished" in done else ""
    return f"{span(done['seconds'])}{ago}" if "seconds" in done else ""


def span(seconds: float) -> str:
    """``40 s``, ``3 min``, ``1 h 10 min``, ``2 days``."""
    minutes = seconds / 60
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 99.5:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{hours / 24:.0f} days"
