"""A pipeline from its YAML: what is not done runs, in the order of its needs, and ``results.json`` says what came out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import Failed, UserError
from accord.io.atomic import write_json
from accord.io.readers import read_json, read_record
from accord.pipeline.execute import Ended, Work, execute
from accord.pipeline.failure import FAILED, in_words
from accord.pipeline.plan import PipelineConfig, Planned, plan, selected
from accord.pipeline.records import BEGUN, JOURNAL, missing_outputs, read_done
from accord.pipeline.references import require, resolve
from accord.pipeline.stage import Outcome, failure, run_stage
from accord.pipeline.status import progress, standings
from accord.pipeline.task import folder, logs, task_of, valid_record
from accord.pipeline.view import LiveTable, view_for
from accord.registry.manifest import versions
from accord.runtime.console import console

LAST = "pipeline.json"


@dataclass(frozen=True, slots=True)
class Options:
    """How a pipeline is run."""

    only: tuple[str, ...] = ()
    """Stages; empty: all."""
    force: tuple[str, ...] = ()
    """Stages that run again though nothing changed."""
    jobs: int = 1
    """Stages at once."""


def run_pipeline(path: str | Path, overrides: Sequence[str] = (), options: Options | None = None) -> dict[str, Any]:
    """Runs what is not done, and writes ``results.json`` beside the stages' folders; returns its content.

    A stage whose settings and inputs are unchanged is kept; one that was interrupted goes on; where one fails, those
    that do not need it run.  With ``only``, the results are those stages' alone, and nothing is written.  Raises
    UserError before anything has run; Failed, when all that could has run; and Interrupted.
    """
    started, options = time.monotonic(), options or Options()
    pipeline, planned = plan(path, overrides)
    folders = {p.name: folder(p.config, p.kind) for p in planned}
    chosen = _chosen(planned, folders, options)
    remember(path, overrides, pipeline)
    view = view_for(chosen, folders)
    with view:
        starter = _Starter(pipeline, folders, selected(options.force, planned, "--force"), options.jobs, view)
        ended = execute(chosen, starter.start, options.jobs, view, starter.words)
    if ended.failures:
        raise Failed(_what_failed(ended))
    if len(chosen) < len(planned):
        return {"stages": _stages(ended.outcomes)}
    results = collect_results(pipeline, planned, folders, ended.outcomes)
    target = Path(pipeline.out) / "results.json"
    write_json(target, results)
    if all(outcome.skipped for outcome in ended.outcomes.values()):
        _show_again(planned, folders)
    console.print(f"\nwrote {target} ({time.monotonic() - started:.0f} s in all)", markup=False)
    return results


def _chosen(planned: Sequence[Planned], folders: Mapping[str, Path], options: Options) -> list[Planned]:
    """The stages to run.  Raises UserError where one of them takes what is neither done nor to be run."""
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least one stage runs at a time.")
    if not options.only:
        return list(planned)
    names = selected(options.only, planned, "--only")
    for stage in planned:
        missing = [n for n in stage.needs if n not in names and not _usable(folders[n])]
        if stage.name in names and missing:
            raise UserError(
                f"--only {','.join(options.only)}: {stage.name} takes {' and '.join(missing)}, which"
                f" {'is' if len(missing) == 1 else 'are'} not done; name {'it' if len(missing) == 1 else 'them'} too, or"
                " leave --only out."
            )
    chosen = [stage for stage in planned if stage.name in names]
    taken = {need for stage in chosen for need in stage.needs if need not in names}
    for standing in standings(planned, folders).values() if taken else ():
        if standing.name in taken and standing.state != "done":
            console.print(f"{standing.name} is used as it is: {standing.reasons[0]}", markup=False)
    return chosen


def _usable(directory: Path) -> bool:
    done = read_done(directory)
    return bool(done) and not missing_outputs(directory, done)


@dataclass(frozen=True, slots=True)
class _Starter:
    """Runs one stage: here, or in a worker where several run at once."""

    pipeline: PipelineConfig
    folders: Mapping[str, Path]
    forced: set[str]
    jobs: int
    view: object

    def start(self, stage: Planned, alone: bool) -> Outcome | Work:
        config = resolve(stage.kind, stage.config, self.folders.get)
        require(config, stage.kind, list(self.folders))
        force, journal = stage.name in self.forced, self._journal()
        if alone or (not force and valid_record(task_of(stage.kind, config))):
            bar = not isinstance(self.view, LiveTable)
            return run_stage(stage.kind, config, resume=True, reuse=True, force=force, bar=bar, journal=journal)
        from accord.pipeline.worker import Worker

        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        quiet = isinstance(self.view, LiveTable)
        for directory in (self.folders[stage.name], logs(config, stage.kind)):
            directory.mkdir(parents=True, exist_ok=True)
        return Worker(stage.kind, config, force, journal, threads, quiet)

    def _journal(self) -> Path:
        out = Path(self.pipeline.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another with out=.") from None
        return out / JOURNAL

    def words(self, stage: Planned, error: Exception) -> str:
        """What a stage failed with, in one sentence; where its process was killed, recorded as its failure."""
        from accord.pipeline.worker import Killed

        directory = self.folders[stage.name]
        if isinstance(error, Killed):
            begun = read_record(directory / BEGUN)
            if begun:
                step = progress(directory).get("step", 0)
                write_json(directory / FAILED, failure(begun["key"], str(error), step))
            return str(error)
        return in_words(error, logs(stage.config, stage.kind) / f"{stage.name}.log")


def _what_failed(ended: Ended) -> str:
    """The last line of a run in which something failed."""
    said = "; ".join(f"{name} failed: {words.rstrip('.')}" for name, words in ended.failures.items())
    skipped = f"; not run because of that: {', '.join(ended.not_run)}" if ended.not_run else ""
    return f"{said}{skipped}. Fix it and run the same command again: what is done stays."


def remember(path: str | Path, overrides: Sequence[str], pipeline: PipelineConfig) -> None:
    """Keeps which file was run last with this ``out``, for commands that are given none."""
    target, content = Path(pipeline.out) / LAST, {"file": str(path), "overrides": list(overrides)}
    if read_record(target) != content:
        try:
            write_json(target, content)
        except OSError as error:
            raise UserError(
                f"{pipeline.out}: cannot be written ({error.strerror}); choose another with out=."
            ) from None


def _stages(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    return {name: {key: o.done[key] for key in ("seconds", "peak_rss_mb")} for name, o in outcomes.items()}


def collect_results(
    pipeline: PipelineConfig,
    planned: Sequence[Planned],
    folders: Mapping[str, Path],
    outcomes: Mapping[str, Outcome],
) -> dict[str, Any]:
    """The comparison's figures, and for each stage what it took; of several comparisons, each under its stage's name."""
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


def _show_again(planned: Sequence[Planned], folders: Mapping[str, Path]) -> None:
    """What the comparison printed when it ran."""
    for stage in planned:
        text = folders[stage.name] / "results.txt"
        if stage.kind == "compare" and text.exists():
            console.print(text.read_text(encoding="utf-8"), markup=False)


__all__ = ["Options", "collect_results", "plan", "remember", "run_pipeline"]
