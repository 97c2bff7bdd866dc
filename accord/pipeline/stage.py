"""Runs one stage, so that it can be killed and resumed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.config.common import ParallelStage, PrecisionStage, Stage
from accord.config.load import to_yaml
from accord.errors import Failed, Interrupted, UserError, Waiting
from accord.feedback.waiting import WAITING
from accord.io.atomic import leftovers, write_json, write_text
from accord.io.digests import MANIFEST
from accord.io.finite_json import figures
from accord.io.records import Progress, read_record_to_show
from accord.pipeline.checks import check_device, check_folders, check_functions
from accord.pipeline.failure import FAILED, before_start, in_words, moment_of, sentence
from accord.pipeline.lock import LOCK, Locked, alive, hold_lock, owner, refusal
from accord.pipeline.previous import (
    LOGS,
    drop,
    finished,
    interrupted,
    is_worth_keeping,
    place_of,
    put_aside,
    restore_logs,
    take_back,
)
from accord.pipeline.ranks import check_ranks, run_on_ranks, starts_ranks
from accord.pipeline.records import (
    BEGUN,
    DONE,
    RANKS_FOLDER,
    RANKS_STATE,
    STATE,
    has_state,
    note,
    outputs,
    read_begun,
    read_done,
)
from accord.pipeline.references import fetch
from accord.pipeline.task import Task, logs, task_of, valid_record
from accord.pipeline.why import differences
from accord.registry.manifest import versions
from accord.runtime.allocator import keep_memory
from accord.runtime.console import console
from accord.runtime.optional import optional
from accord.runtime.peak_memory import peak, reset_peak
from accord.runtime.progress_file import ProgressFile
from accord.runtime.run import Ranks, Run, StageIdentity
from accord.runtime.stop_signal import STOPPING
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
    ``journal``: a file for events.  Until the stage's function has opened and checked everything, no file is touched; after
    that, a failure is recorded as a sentence (``failed.json``), written to the log, and raised.  A stage that waits for people
    leaves ``waiting.json`` and raises Waiting.  A result of other settings
    in the folder is put aside, and one of these settings that was put aside is taken back (``accord.pipeline.previous``).
    Raises UserError and Interrupted; Locked where another process is writing the folder.
    """
    task = task_of(kind, config)
    config, directory = task.config, task.directory
    if (reuse or resume) and not force and (done := valid_record(task)):
        _tidy_done(task)
        return Outcome(directory.name, True, done, directory)
    check_folders(kind, config, task.sources)
    if alive(lock := owner(directory)):
        raise Locked(refusal(directory, lock))
    if not force and _take_back(task, resume):
        return Outcome(directory.name, True, read_done(directory), directory)
    check_functions(kind, config)
    check_device(config)
    fetch(kind, config, _say)
    if isinstance(config, ParallelStage) and starts_ranks(config):
        check_ranks(config)
        return _on_ranks(task, config, resume=resume, reuse=reuse, force=force, bar=bar, journal=journal)
    begun = read_begun(directory)
    if resume and not reuse and begun and (begun.get("key") != task.key or force) and has_state(directory):
        raise UserError(
            f"{directory}: the saved state has other settings or inputs; run without --resume to start from the beginning."
        )
    keep_memory()
    if config.threads:
        _set_threads(config.threads)
    with contextlib.ExitStack() as stack:
        attempt = _attempt(task, stack, journal, resume=resume, reuse=reuse, force=force)
        record = _call(attempt, bar)
        _tidy(directory, finished=True)
        drop(task)
    return Outcome(directory.name, False, record, directory)


def _attempt(
    task: Task, stack: contextlib.ExitStack, journal: Path | None, *, resume: bool, reuse: bool, force: bool
) -> Attempt:
    """A run of a task, from its saved state where there is one with the same key and ``resume``."""
    found, begun = _stamps(task.directory), read_begun(task.directory)
    resumes = resume and begun.get("key") == task.key and not force
    why = begun.get("why", []) if resumes else differences(task, forced=force or not (resume or reuse))
    return Attempt(task, resumes, tuple(why), partial(note, journal, task.directory.name, task.key), stack, found)


def attempt_elsewhere(task: Task, stack: contextlib.ExitStack, journal: Path, force: bool) -> Attempt:
    """A run of a task on a node that does not share this disk, of which this process keeps the folder.

    Raises UserError where the folder cannot be written, and Locked where another process is writing it.
    """
    check_folders(task.kind, task.config, task.sources)
    if alive(lock := owner(task.directory)):
        raise Locked(refusal(task.directory, lock))
    if not force:
        _take_back(task, resume=True)
    return _attempt(task, stack, journal, resume=True, reuse=True, force=force)


def finish_elsewhere(attempt: Attempt, record: Mapping[str, Any]) -> Outcome:
    """Writes done.json of a stage whose results have arrived, and registers its model."""
    task, directory = attempt.task, attempt.task.directory
    done = {**record, "sources": dict(task.sources), "why": list(attempt.why)}
    write_json(directory / DONE, done)
    attempt.noted("finished")
    with optional(f"the entry of {directory / 'model'} in the registry", partial(console.print, markup=False)):
        _register(directory)
    _tidy(directory, finished=True)
    drop(task)
    return Outcome(directory.name, False, done, directory)


def _on_ranks(task: Task, config: ParallelStage, journal: Path | None, **options: bool) -> Outcome:
    """The same by several processes.  A failure of another rank than 0 is recorded here."""
    directory = task.directory
    try:
        log = logs(config, task.kind) / f"{directory.name}.log"
        run_on_ranks(task.kind, config, {**options, "journal": str(journal or "")}, log)
    except Failed as failed:
        if read_begun(directory).get("key") == task.key and not alive(owner(directory)):
            with contextlib.suppress(OSError):
                step = read_record_to_show(directory / ProgressFile.NAME, Progress).get("step", 0)
                write_json(directory / FAILED, failure(task.key, str(failed), step))
        raise
    return Outcome(directory.name, False, read_done(directory), directory)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a stage, whose folder is opened for writing only when everything has been checked."""

    task: Task
    resumes: bool
    why: Sequence[str]
    noted: Callable[[str], None]
    """Writes an event to the journal."""
    stack: contextlib.ExitStack
    """Holds the folder's lock from ``open_folder`` on."""
    found: Mapping[str, object]
    """``_stamps`` of the folder when its records were read."""

    def open_folder(self) -> None:
        """Locks the stage's folder, puts an earlier result aside, and writes the records of the beginning.

        Raises Locked where another process writes the folder or has changed it since it was read.
        """
        task, directory = self.task, _make(self.task.directory)
        _make(logs(task.config, task.kind))
        self.stack.enter_context(hold_lock(directory))
        if _stamps(directory) != self.found:
            raise Locked(f"{directory}: another process has changed it in the meantime; run again.")
        if self.resumes or not is_worth_keeping(directory):
            self._begin(directory)
        else:
            place = _put_aside(task)
            try:
                self.stack.enter_context(hold_lock(_make(directory)))
                self._begin(directory)
            except OSError:  # a full disk, say
                take_back(task, place)
                raise
        self.noted("resumed" if self.resumes else "started")

    def _begin(self, directory: Path) -> None:
        """Removes what earlier runs left behind in the folder, and writes the records of the beginning."""
        for name in (DONE, WAITING):
            (directory / name).unlink(missing_ok=True)
        for place in (directory, _make(logs(self.task.config, self.task.kind))):
            _tidy(place, finished=False)
        if not self.resumes:
            (directory / ProgressFile.NAME).unlink(missing_ok=True)
            write_json(directory / BEGUN, {**self.task.record(), "why": list(self.why)})
        write_text(directory / "config.yaml", to_yaml(self.task.config))


def _stamps(directory: Path) -> dict[str, object]:
    """When the records and the state in a folder were last written."""
    found: dict[str, object] = {}
    for name in (DONE, BEGUN, STATE, RANKS_STATE):
        with contextlib.suppress(OSError):
            stat = (directory / name).stat()
            found[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    return found


def _put_aside(task: Task) -> Path:
    """Puts what stands in a stage's folder aside, and says so where it is a result or a state; returns where it is."""
    directory = task.directory
    what = "finished" if (directory / DONE).exists() else "interrupted" if has_state(directory) else ""
    same = task.key in (read_done(directory).get("key"), read_begun(directory).get("key"))
    place = put_aside(task)
    until = "until this one is finished" if same else "and comes back when its settings are asked for again"
    if what:
        console.print(f"{directory.name}: the {what} run here is moved to {place}, {until}", markup=False)
    return place


def _take_back(task: Task, resume: bool) -> bool:
    """Takes a run with the task's key back from where it was put aside; whether it is a finished one.

    One that stands in its folder goes first, and an unfinished one comes back only to be resumed.
    """
    records = (read_done(task.directory), read_begun(task.directory))
    if any(record.get("key") == task.key for record in records) or not (
        (is_done := finished(task)) or (resume and interrupted(task))
    ):
        return False
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_lock(_make(task.directory)))
        if is_worth_keeping(task.directory):
            _put_aside(task)
        place = place_of(task.directory, task.key)
        take_back(task, place)
    what = "finished" if is_done else "interrupted"
    console.print(f"{task.directory.name}: its {what} run with these settings is taken back from {place}", markup=False)
    if is_done:
        with optional(f"the entry of {task.directory / 'model'} in the registry", partial(console.print, markup=False)):
            _register(task.directory)
    return is_done


def _call(attempt: Attempt, bar: bool) -> dict[str, Any]:
    """Calls the stage's function, and writes done.json or failed.json."""
    task = attempt.task
    config, directory, name = task.config, task.directory, task.directory.name
    place, started = logs(config, task.kind), time.time()
    reset_peak()
    identity = StageIdentity(name, directory, place, config.seed, task.key, task.inputs, task.sources, task.settings)
    with contextlib.ExitStack() as together:
        ranks = None
        if isinstance(config, ParallelStage):
            from accord.distributed import mesh
            from accord.pipeline.follow import announce

            announce(task, attempt.resumes)
            together.enter_context(mesh.working(config.parallel.timeout_seconds))
            ranks = Ranks(True, mesh.anywhere, "" if mesh.has_parent() else STOPPING)
        run = together.enter_context(
            Run(identity, config.log_every, config.save_every, attempt.resumes, bar, attempt.open_folder, ranks)
        )
        run.decided = task.decided
        try:
            if isinstance(config, PrecisionStage) and config.precision == "bfloat16":
                from accord.runtime.device import resolve_device, slow_precision

                if words := slow_precision(resolve_device(config.device), config.precision):
                    run.say(words)
            metrics = STAGE_KINDS[task.kind].call(fetch(task.kind, config, _say), run)
            run.open_folders()
            record = {
                **task.record(),
                "seconds": round(run.seconds, 2),
                "peak_rss_mb": round(peak(), 1),
                "metrics": dict(metrics),
                "outputs": outputs(directory),
                "versions": versions(),
                "started": round(started, 3),
                "finished": round(time.time(), 3),
                "why": list(attempt.why),
                **({"read": dict(run.read)} if run.read else {}),
            }
            write_json(directory / DONE, record)
        except Interrupted:
            if run.opened:
                attempt.noted("stopped")
            raise
        except Waiting:
            if run.opened:
                attempt.noted("waiting")
            raise
        except Locked:
            raise
        except Exception as error:  # recorded as a sentence, and raised again
            if not run.opened:
                raise UserError(before_start(name, error)) from error
            if ranks is not None and mesh.lost_contact(error):
                raise _record_lost_rank(task, run, error, attempt.noted) from error
            _record_failure(task, run, error, attempt.noted)
            if words := sentence(error, moment_of(run)):
                raise UserError(words) from error
            raise
        (directory / FAILED).unlink(missing_ok=True)
        attempt.noted("finished")
        run.write_later(f"the entry of {directory / 'model'} in the registry", lambda: _register(directory))
        run.write_optional()
        if run.stop.raised:  # after the last step: no further stage may start
            _tidy(directory, finished=True)
            drop(task)
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


def _record_lost_rank(task: Task, run: Run, error: Exception, noted: Callable[[str], None]) -> Failed:
    """Records that another rank has ended, which alone knows why; returns this as an error."""
    failed = Failed("another rank has ended; its own lines say why.")
    failed.__cause__ = error  # so that the log has its traceback
    _record_failure(task, run, failed, noted)
    return failed


def failure(key: str, words: str, step: int = 0) -> dict[str, Any]:
    """The content of failed.json."""
    return {"key": key, "error": words, "step": step, "time": round(time.time(), 3)}


def _register(directory: Path) -> None:
    """Adds the model that a stage wrote to the registry."""
    if (directory / "model" / MANIFEST).exists():
        from accord.registry.store import open_store

        open_store().add(directory / "model", out=directory.parent)


def _tidy_done(task: Task) -> None:
    """Removes files left by a kill after the stage's end, unless another process is writing the folder."""
    directory, beside = task.directory, logs(task.config, task.kind)
    names = (STATE, RANKS_STATE, RANKS_FOLDER, BEGUN, LOCK, ProgressFile.NAME, FAILED, WAITING, LOGS)
    if any((directory / name).exists() for name in names) or any(directory.glob(".*")) or leftovers(beside):
        try:
            with hold_lock(directory):
                if (directory / BEGUN).exists():  # killed before the entry in the registry
                    with optional(
                        f"the entry of {directory / 'model'} in the registry", partial(console.print, markup=False)
                    ):
                        _register(directory)
                _tidy(directory, finished=True)
                _tidy(beside, finished=False)
                restore_logs(task)
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
        for name in (STATE, RANKS_STATE, BEGUN, ProgressFile.NAME, FAILED, WAITING):
            (directory / name).unlink(missing_ok=True)
        shutil.rmtree(directory / RANKS_FOLDER, ignore_errors=True)


def _make(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be created ({error.strerror}); choose another with out= or logs=."
        ) from None
    return directory


def _say(line: str) -> None:
    console.print(line, markup=False)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
