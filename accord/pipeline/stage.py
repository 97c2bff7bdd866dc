"""Runs one stage, so that it can be killed and resumed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.config.common import PrecisionStage, Stage
from accord.config.load import to_yaml
from accord.errors import Interrupted, UserError
from accord.io.atomic import leftovers, write_json, write_text
from accord.io.digests import MANIFEST
from accord.io.finite_json import figures
from accord.pipeline.failure import FAILED, in_words, moment_of, sentence
from accord.pipeline.lock import LOCK, Locked, hold_lock
from accord.pipeline.records import BEGUN, DONE, STATE, note, outputs, read_begun
from accord.pipeline.task import Task, folder, logs, task_of, valid_record
from accord.pipeline.why import differences
from accord.registry.manifest import versions
from accord.runtime.allocator import keep_memory
from accord.runtime.console import console
from accord.runtime.optional import optional
from accord.runtime.peak_memory import peak, reset_peak
from accord.runtime.progress_file import ProgressFile
from accord.runtime.run import Run, StageIdentity
from accord.stage_kinds.table import STAGE_KINDS


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished stage: its folder, and the record in its done.json."""

    name: str
    skipped: bool
    done: Mapping[str, Any]
    folder: Path = Path()

    @property
    def metrics(self) -> dict[str, float]:
        """The last metrics."""
        return figures(self.done["metrics"])


def run_stage(
    kind: str,
    config: Stage,
    *,
    resume: bool,
    reuse: bool,
    force: bool = False,
    bar: bool = True,
    journal: Path | None = None,
) -> Outcome:
    """Runs a stage whose config is resolved.

    ``reuse`` or ``resume``: a stage that is done with the same key is skipped.  ``resume``: continues from a saved state
    with the same key, if there is one.  ``force``: starts from the beginning in any case.  ``bar``: shows a progress bar.
    ``journal``: a file for events.  A failure is recorded as a sentence (``failed.json``), written to the log, and raised.
    Raises UserError and Interrupted; Locked where another process is writing the folder.
    """
    directory = _make(folder(config, kind))
    _make(logs(config, kind))
    task = task_of(kind, config)
    if (reuse or resume) and not force and (done := valid_record(task)):
        _tidy_done(directory)
        return Outcome(directory.name, True, done, directory)
    keep_memory()
    if config.threads:
        _set_threads(config.threads)
    with hold_lock(directory):
        begun = read_begun(directory)
        same = begun.get("key") == task.key and not force
        if resume and not reuse and begun and not same and (directory / STATE).exists():
            raise UserError(
                f"{directory}: the saved state has other settings or inputs; run without --resume to start from the beginning."
            )
        resumes = resume and same
        why = begun.get("why", []) if resumes else differences(task, forced=force or not (resume or reuse))
        (directory / DONE).unlink(missing_ok=True)
        for place in (directory, logs(config, kind)):
            _tidy(place, finished=False)
        if not resumes:
            for old in (STATE, ProgressFile.NAME):
                (directory / old).unlink(missing_ok=True)
            write_json(directory / BEGUN, {**task.record(), "why": why})
        noted = partial(note, journal, directory.name, task.key)
        noted("resumed" if resumes else "started")
        record = _call(task, resumes, bar, why, noted)
        _tidy(directory, finished=True)
    return Outcome(directory.name, False, record, directory)


def _call(task: Task, resume: bool, bar: bool, why: Sequence[str], noted: Callable[[str], None]) -> dict[str, Any]:
    """Calls the stage's function, and writes done.json or failed.json."""
    config, directory, name = task.config, task.directory, task.directory.name
    place, started = logs(config, task.kind), time.time()
    reset_peak()
    identity = StageIdentity(name, directory, place, config.seed, task.key, task.inputs, task.sources, task.settings)
    with Run(identity, config.log_every, config.save_every, resume, bar) as run:
        try:
            write_text(directory / "config.yaml", to_yaml(config))
            if isinstance(config, PrecisionStage) and config.precision != "float32":
                from accord.runtime.device import resolve_device, slow_precision

                if words := slow_precision(resolve_device(config.device), config.precision):
                    run.say(words)
            metrics = STAGE_KINDS[task.kind].function(config, run)
            record = {
                **task.record(),
                "seconds": round(run.seconds, 2),
                "peak_rss_mb": round(peak(), 1),
                "metrics": dict(metrics),
                "outputs": outputs(directory),
                "versions": versions(),
                "started": round(started, 3),
                "finished": round(time.time(), 3),
                "why": list(why),
            }
            write_json(directory / DONE, record)
        except Interrupted:
            noted("stopped")
            raise
        except Exception as error:  # recorded as a sentence, and raised again
            _record_failure(task, run, error, noted)
            if words := sentence(error, moment_of(run)):
                raise UserError(words) from error
            raise
        (directory / FAILED).unlink(missing_ok=True)
        noted("finished")
        run.write_later(f"the entry of {directory / 'model'} in the registry", lambda: _register(directory))
        run.write_optional()
        if run.stop.raised:  # after the last step: no further stage may start
            _tidy(directory, finished=True)
            raise Interrupted(f"{name}: stopped after its last step; it is done.")
    return record


def _record_failure(task: Task, run: Run, error: Exception, noted: Callable[[str], None]) -> None:
    """Writes a failure as a sentence to failed.json and its traceback to the log, as far as the disk has space."""
    _tidy(task.directory, finished=False)  # partial files may fill the disk
    try:
        run.log_failure(error)
        words = in_words(error, run.logs / f"{run.name}.log", moment_of(run))
        write_json(task.directory / FAILED, failure(task.key, words, run.step))
        noted("failed")
    except OSError:
        pass


def failure(key: str, words: str, step: int = 0) -> dict[str, Any]:
    """The content of failed.json."""
    return {"key": key, "error": words, "step": step, "time": round(time.time(), 3)}


def _register(directory: Path) -> None:
    """Adds the model that a stage wrote to the registry."""
    if (directory / "model" / MANIFEST).exists():
        from accord.registry.store import open_store

        open_store().add(directory / "model", out=directory.parent)


def _tidy_done(directory: Path) -> None:
    """Removes files left by a kill after the stage's end, unless another process is writing the folder."""
    leftovers = [directory / name for name in (STATE, BEGUN, LOCK, ProgressFile.NAME, FAILED)]
    if any(path.exists() for path in leftovers) or any(directory.glob(".*")):
        try:
            with hold_lock(directory):
                if (directory / BEGUN).exists():  # killed before the entry in the registry
                    with optional(
                        f"the entry of {directory / 'model'} in the registry", partial(console.print, markup=False)
                    ):
                        _register(directory)
                _tidy(directory, finished=True)
        except Locked:
            return


def _tidy(directory: Path, finished: bool) -> None:
    """Removes partial files and, once finished, the state to resume from."""
    for leftover in leftovers(directory):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    if finished:
        for name in (STATE, BEGUN, ProgressFile.NAME, FAILED):
            (directory / name).unlink(missing_ok=True)


def _make(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be created ({error.strerror}); choose another with out= or logs=."
        ) from None
    return directory


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
