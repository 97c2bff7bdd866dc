"""Runs a pipeline from its YAML: stages that are not up to date, in dependency order; writes ``results.json``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.errors import Failed, UserError, Waiting
from accord.io.atomic import write_json
from accord.io.readers import read_json
from accord.io.records import LastRun, read_record_to_show
from accord.pipeline.checks import check_device, check_folders, check_functions, check_rows
from accord.pipeline.cluster import Place, address_of, cluster_for, runs_elsewhere
from accord.pipeline.execute import Ended, Work, execute
from accord.pipeline.failure import FAILED, in_words
from accord.pipeline.plan import PipelineConfig, Planned, plan, selected
from accord.pipeline.previous import finished
from accord.pipeline.records import JOURNAL, missing_outputs, read_begun, read_done
from accord.pipeline.references import fetch, require, resolve
from accord.pipeline.stage import Outcome, failure, run_stage
from accord.pipeline.status import read_progress, stage_statuses
from accord.pipeline.task import Task, folder, logs, sources, task_of, valid_record
from accord.pipeline.view import LiveTable, view_for
from accord.registry.manifest import versions
from accord.runtime.console import console
from accord.runtime.launcher import is_launched

LAST = "pipeline.json"


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run of a pipeline."""

    only: tuple[str, ...] = ()
    """Stages to run; empty: all."""
    force: tuple[str, ...] = ()
    """Stages to run again although nothing changed."""
    jobs: int | None = None
    """Number of parallel stages; None: one, or with ``on`` as many as the cluster has CPUs."""
    on: str = ""
    """Where stages run: empty: here; ``ray``: on a cluster of this machine; ``ray=ADDRESS``: on that one."""


def run_pipeline(path: str | Path, overrides: Sequence[str] = (), options: Options | None = None) -> dict[str, Any]:
    """Runs the stages that are not up to date and writes ``results.json`` beside their folders; returns its content.

    A stage whose settings and inputs are unchanged is kept; an interrupted one resumes; after a failure, the stages that
    do not need it still run.  With ``only``, the results are those of these stages, and no file is written.  Raises
    UserError before anything has run, Failed or Waiting after everything that could run, and Interrupted.
    """
    started, options = time.monotonic(), options or Options()
    pipeline, planned = plan(path, overrides)
    folders = {p.name: folder(p.config, p.kind) for p in planned}
    stages = _stages_to_run(planned, folders, options)
    address = address_of(options.on)
    _check_all(stages, folders, elsewhere=address is not None)
    with contextlib.ExitStack() as stack:
        place = None if address is None else stack.enter_context(cluster_for(stages, address, Path(pipeline.out)))
        remember(path, overrides, pipeline)
        jobs = options.jobs or (1 if place is None else place.cpus)
        view = view_for(stages, folders)
        stack.enter_context(view)
        starter = _Starter(pipeline, folders, selected(options.force, planned, "--force"), jobs, view, place)
        ended = execute(stages, starter.start, jobs, view, starter.words, elsewhere=place is not None)
    if ended.failures:
        raise Failed(_what_failed(ended))
    if ended.waiting:
        raise Waiting(_what_waits(ended))
    if len(stages) < len(planned):
        return {"stages": _stages(ended.outcomes)}
    results = collect_results(pipeline, planned, folders, ended.outcomes)
    target = Path(pipeline.out) / "results.json"
    write_json(target, results)
    if all(outcome.skipped for outcome in ended.outcomes.values()):
        _print_reports(planned, folders)
    console.print(f"\nwrote {target} ({time.monotonic() - started:.0f} s in all)", markup=False)
    return results


def _stages_to_run(planned: Sequence[Planned], folders: Mapping[str, Path], options: Options) -> list[Planned]:
    """The stages to run.  Raises UserError where one needs a stage that is neither done nor to be run."""
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least one stage runs at a time.")
    if options.jobs and options.jobs > 1 and is_launched():
        raise UserError(
            f"--jobs {options.jobs}: under torchrun one stage after another runs on all ranks; leave --jobs out."
        )
    if not options.only:
        return list(planned)
    names = selected(options.only, planned, "--only")
    for stage in planned:
        missing = [n for n in stage.needs if n not in names and not _usable(folders[n])]
        if stage.name in names and missing:
            words = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
            raise UserError(
                f"--only {','.join(options.only)}: {stage.name} takes {words}, which"
                f" {'is' if len(missing) == 1 else 'are'} not done; name {'it' if len(missing) == 1 else 'them'} too, or"
                " leave --only out."
            )
    stages = [stage for stage in planned if stage.name in names]
    used = {need for stage in stages for need in stage.needs if need not in names}
    for status in stage_statuses(planned, folders).values() if used else ():
        if status.name in used and status.state != "done":
            console.print(f"{status.name} is used as it is: {status.reasons[0]}", markup=False)
    return stages


def _check_all(stages: Sequence[Planned], folders: Mapping[str, Path], elsewhere: bool) -> None:
    """Checks every stage before the first one runs; not the devices of another machine.  Raises UserError naming the stage."""
    runs = {status.name for status in stage_statuses(stages, folders).values() if status.state != "done"}
    for stage in stages:
        resolved = resolve(stage.kind, stage.config, folders.get)
        try:
            check_folders(stage.kind, stage.config, sources(stage.kind, resolved))
            if stage.name in runs:
                check_functions(stage.kind, stage.config)
                if not elsewhere:
                    check_device(stage.config)
                    fetch(stage.kind, resolved, partial(console.print, markup=False))
                if any(need in runs for need in stage.needs):
                    check_rows(stage.kind, stage.config)
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from None


def _usable(directory: Path) -> bool:
    done = read_done(directory)
    return bool(done) and not missing_outputs(directory, done)


@dataclass(frozen=True, slots=True)
class _Starter:
    """Runs one stage, in this process or in a worker where several run in parallel."""

    pipeline: PipelineConfig
    folders: Mapping[str, Path]
    forced: set[str]
    jobs: int
    view: object
    place: Place | None = None

    def start(self, stage: Planned, alone: bool) -> Outcome | Work:
        config = resolve(stage.kind, stage.config, self.folders.get)
        require(config, stage.kind, list(self.folders))
        force, journal = stage.name in self.forced, self._journal()
        if self.place and runs_elsewhere(config) and (force or not _is_finished(task_of(stage.kind, config))):
            from accord.pipeline.remote import RemoteStage

            return RemoteStage(stage.kind, config, force, journal, self.place)
        if alone or (not force and _is_finished(task_of(stage.kind, config))):
            bar = not isinstance(self.view, LiveTable)
            return run_stage(stage.kind, config, resume=True, reuse=True, force=force, bar=bar, journal=journal)
        from accord.pipeline.worker import Worker

        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        quiet = isinstance(self.view, LiveTable)
        return Worker(stage.kind, config, force, journal, threads, quiet)

    def _journal(self) -> Path:
        out = Path(self.pipeline.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be created ({error.strerror}); choose another with out=.") from None
        return out / JOURNAL

    def words(self, stage: Planned, error: Exception) -> str:
        """A stage's failure as a sentence; also writes failed.json where its process was killed."""
        from accord.pipeline.worker import Killed

        directory = self.folders[stage.name]
        if isinstance(error, Killed):
            begun = read_begun(directory)
            if begun and error.opened:
                step = read_progress(directory).get("step", 0)
                write_json(directory / FAILED, failure(begun["key"], str(error), step))
            return str(error)
        return in_words(error, logs(stage.config, stage.kind) / f"{stage.name}.log")


def _is_finished(task: Task) -> bool:
    """Whether the task is done, in its folder or where it was put aside."""
    return bool(valid_record(task)) or finished(task)


def _what_failed(ended: Ended) -> str:
    """The last line of a run with failures."""
    said = "; ".join(f"{name} failed: {words.rstrip('.')}" for name, words in ended.failures.items())
    waits = "".join(f"; {words.rstrip('.')}" for words in ended.waiting.values())
    return f"{said}{_skipped(ended)}{waits}. Fix this and run the same command again; finished stages are kept."


def _what_waits(ended: Ended) -> str:
    """The last line of a run in which stages wait for people, and none failed."""
    return f"{'; '.join(words.rstrip('.') for words in ended.waiting.values())}{_skipped(ended)}."


def _skipped(ended: Ended) -> str:
    return f"; not run because of that: {', '.join(ended.not_run)}" if ended.not_run else ""


def remember(path: str | Path, overrides: Sequence[str], pipeline: PipelineConfig) -> None:
    """Records the file and overrides of this run in ``out``, for commands without a file."""
    target, content = Path(pipeline.out) / LAST, {"file": str(path), "overrides": list(overrides)}
    if read_record_to_show(target, LastRun) != content:
        try:
            write_json(target, content)
        except OSError as error:
            raise UserError(
                f"{pipeline.out}: cannot be written ({error.strerror}); choose another with out=."
            ) from None


def _stages(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    return {
        name: {key: o.done[key] for key in ("seconds", "peak_rss_mb") if key in o.done} for name, o in outcomes.items()
    }


def collect_results(
    pipeline: PipelineConfig,
    planned: Sequence[Planned],
    folders: Mapping[str, Path],
    outcomes: Mapping[str, Outcome],
) -> dict[str, Any]:
    """The comparison's metrics and each stage's time and memory; several comparisons also under their stages' names."""
    results: dict[str, Any] = {}
    compared = {
        stage.name: read_json(folders[stage.name] / "results.json", f"run again with --force {stage.name}.")
        for stage in planned
        if stage.kind == "compare"
    }
    for figures in compared.values():
        results |= figures
    if len(compared) > 1:
        results["comparisons"] = compared
    results["stages"] = _stages({stage.name: outcomes[stage.name] for stage in planned})
    return {**results, "seed": pipeline.seed, "versions": versions()}


def _print_reports(planned: Sequence[Planned], folders: Mapping[str, Path]) -> None:
    """Prints the report of each comparison again."""
    for stage in planned:
        text = folders[stage.name] / "results.txt"
        if stage.kind == "compare" and text.exists():
            console.print(text.read_text(encoding="utf-8", errors="replace"), markup=False)


__all__ = ["Options", "collect_results", "plan", "remember", "run_pipeline"]
