"""The status of a pipeline's stages: done, running, failed, interrupted, waiting for people, or why they would run."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accord.errors import UserError
from accord.feedback.waiting import waiting_in_words
from accord.io.finite_json import shown
from accord.io.records import Progress, read_record_to_show
from accord.pipeline.failure import read_failure
from accord.pipeline.lock import alive, owner
from accord.pipeline.plan import Planned
from accord.pipeline.previous import finished, place_of
from accord.pipeline.records import read_begun, read_done
from accord.pipeline.references import require, resolve
from accord.pipeline.task import task_of, valid_record
from accord.pipeline.why import NEVER, differences
from accord.registry.headline import HEADLINES, STEP, headline
from accord.runtime.progress_file import ProgressFile

State = Literal["done", "running", "failed", "interrupted", "waiting", "runs", "may run", "damaged"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage's state, details in words, and the reasons why it would run."""

    name: str
    state: State
    words: str = ""
    reasons: tuple[str, ...] = ()


def stage_statuses(
    planned: Sequence[Planned], folders: Mapping[str, Path], forced: Collection[str] = ()
) -> dict[str, StageStatus]:
    """The status of every stage by name, in the plan's order; only reads files, inputs for their digests."""
    found: dict[str, StageStatus] = {}
    for stage in planned:
        before = [name for name in stage.needs if name in found and found[name].state != "done"]
        try:
            found[stage.name] = _status(stage, folders, before, stage.name in forced)
        except UserError as error:  # one damaged record must not hide the other stages
            found[stage.name] = StageStatus(stage.name, "damaged", str(error))
    return found


def _status(stage: Planned, folders: Mapping[str, Path], before: Sequence[str], forced: bool) -> StageStatus:
    directory = folders[stage.name]
    lock = owner(directory)
    if lock and alive(lock):
        words = f"pid {lock.get('pid')}, {progress_in_words(stage.kind, directory)}"
        return StageStatus(stage.name, "running", words)
    outdated = (f"upstream out of date: {', '.join(before)}",) if before else ()
    done = read_done(directory)
    try:
        config = resolve(stage.kind, stage.config, folders.get)
        require(config, stage.kind, list(folders))
        task = task_of(stage.kind, config)
    except UserError as error:
        return StageStatus(stage.name, "runs", "", (*_never_run(directory), *(outdated or (str(error),))))
    failed, begun = read_failure(directory), read_begun(directory)
    reasons = tuple(differences(task, forced))
    if failed.get("key") == task.key and not done:
        return StageStatus(stage.name, "failed", str(failed["error"]), (*reasons, *outdated))
    if begun.get("key") == task.key and not done and (words := waiting_in_words(directory, task.key)):
        return StageStatus(stage.name, "waiting", words, (*reasons, *outdated))
    if begun.get("key") == task.key and not done:
        return StageStatus(stage.name, "interrupted", progress_in_words(stage.kind, directory), (*reasons, *outdated))
    if valid_record(task) and not forced:
        return StageStatus(stage.name, "may run" if outdated else "done", duration_and_age(done), outdated)
    if finished(task) and not forced:
        reasons = (f"it would be taken back from {place_of(directory, task.key)}",)
    return StageStatus(stage.name, "runs", "", (*reasons, *outdated))


def _never_run(directory: Path) -> tuple[str, ...]:
    return () if read_done(directory) else (NEVER,)


def read_progress(directory: Path) -> dict[str, Any]:
    """The content of progress.json, empty where there is none that can be read."""
    return read_record_to_show(directory / ProgressFile.NAME, Progress)


def time_left(progress: Mapping[str, Any]) -> float | None:
    """Seconds to the last step at the average pace since the stage started or resumed; None before the first step."""
    steps = progress["step"] - progress["first"]
    pace = (progress["updated"] - progress["begun"]) / steps if steps > 0 else None
    return pace * (progress["total"] - progress["step"]) if pace is not None else None


def progress_in_words(kind: str, directory: Path) -> str:
    """``step 40 of 168, 2 min left, score 0.8``."""
    progress = read_progress(directory)
    if not progress:
        return "no step yet"
    left = time_left(progress)
    step = f"step {progress['step']} of {progress['total']}"
    parts = [step, f"{duration(left)} left" if left else "", running_metrics(kind, progress["metrics"])]
    return ", ".join(part for part in parts if part)


def running_metrics(kind: str, metrics: Mapping[str, float]) -> str:
    """At most three metrics of a running stage: the newest that will head it, then those of the last step."""
    named = {name.removeprefix("rollout/"): value for name, value in metrics.items()}
    heading = [name for on, names in HEADLINES.get(kind, ()) if on != STEP for name in names]
    names = [name for name in (*heading, "loss", "accuracy", "gold") if name in named] or list(named)
    return "  ".join(f"{name} {shown(named[name], '.3g')}" for name in names[:3])


def final_metrics(kind: str, metrics: Mapping[str, float]) -> str:
    """The headline of a finished stage; of a kind without one at most three metrics."""
    if kind in HEADLINES:
        return "  ".join(f"{figure.label} {shown(figure.value, '.3g')}" for figure in headline(kind, metrics))
    return "  ".join(f"{name} {shown(value, '.3g')}" for name, value in list(metrics.items())[:3])


def duration_and_age(done: Mapping[str, Any]) -> str:
    """``12 s, 3 h ago``."""
    ago = f", {duration(time.time() - done['finished'])} ago" if "finished" in done else ""
    return f"{duration(done['seconds'])}{ago}" if "seconds" in done else ""


def duration(seconds: float) -> str:
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
