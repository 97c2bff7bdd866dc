"""One stage: its key, whether it is done, and how it is run so that it can be killed and go on."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.config.load import digest, to_yaml
from accord.config.settings import PretrainedConfig, Stage
from accord.errors import Interrupted, UserError
from accord.io.atomic import leftovers, write_json, write_text
from accord.io.digests import MANIFEST, content_digest
from accord.io.readers import read_record
from accord.pipeline.failure import FAILED, in_words, sentence
from accord.pipeline.lock import LOCK, Locked, held
from accord.pipeline.records import BEGUN, DONE, STATE, gone, note, outputs, read_done
from accord.pipeline.references import is_function, references
from accord.pipeline.why import differences
from accord.registry.manifest import versions
from accord.runtime.allocator import keep_memory
from accord.runtime.peak_memory import peak, reset_peak
from accord.runtime.progress_file import ProgressFile
from accord.runtime.run import Run, StageIdentity

# What a stage calls, and the version of what it does: raised when a change of ours changes its results.
STAGES: dict[str, tuple[str, str, int]] = {
    "demo": ("accord.stage_kinds.demo", "run_demo", 1),
    "pretrained": ("accord.stage_kinds.pretrained", "run_pretrained", 1),
    "base": ("accord.algorithms.base", "train", 2),
    "sft": ("accord.algorithms.sft", "train", 2),
    "pairs": ("accord.stage_kinds.pairs", "run_pairs", 4),
    "reward": ("accord.algorithms.reward_model", "train", 3),
    "ppo": ("accord.stage_kinds.ppo", "train", 4),
    "dpo": ("accord.algorithms.dpo", "train", 2),
    "compare": ("accord.stage_kinds.compare", "run_compare", 3),
    "fuse": ("accord.stage_kinds.fuse", "run_fuse", 1),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage ended: its folder, and the record that lies there as done.json."""

    name: str
    skipped: bool
    done: Mapping[str, Any]
    folder: Path = Path()

    @property
    def metrics(self) -> dict[str, float]:
        """The last figures."""
        return dict(self.done["metrics"])


@dataclass(frozen=True, slots=True)
class Task:
    """A stage whose config is resolved, with what its key is made of."""

    kind: str
    config: Stage
    directory: Path
    key: str
    inputs: Mapping[str, str]
    """Config key: digest of the content of what it names."""
    sources: Mapping[str, str]
    """Config key: path, or the name of what is no path."""
    settings: Mapping[str, Any]
    """Those that change results, inputs blanked."""

    def record(self) -> dict[str, Any]:
        """What a later run is held against."""
        return {
            "kind": self.kind,
            "key": self.key,
            "inputs": dict(self.inputs),
            "sources": dict(self.sources),
            "settings": dict(self.settings),
            "version": STAGES[self.kind][2],
        }


def folder(config: Stage, kind: str) -> Path:
    return Path(config.out) / (config.name or kind)


def logs(config: Stage, kind: str) -> Path:
    return Path(config.logs) / (config.name or kind)


def sources(kind: str, config: Stage) -> dict[str, str]:
    """What a resolved config names, by config key."""
    found = {reference.key: value for reference, value in references(kind, config)}
    if isinstance(config, PretrainedConfig) and Path(config.source).exists():
        found["source"] = config.source
    return found


def parents(kind: str, config: Stage) -> dict[str, str]:
    """Digests of what a resolved config names, by config key: contents, never paths."""
    named = sources(kind, config)
    files = {key: not is_function(value) and Path(value).exists() for key, value in named.items()}
    return {key: content_digest(Path(value)) if files[key] else value for key, value in named.items()}


def bare(config: Stage, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The settings that change results, as plain values; those of the inputs are None."""
    values = config.model_dump(mode="json", exclude=set(config.runtime))
    for name in inputs:
        _blank(values, name.split("."))
    return values


def stage_key(kind: str, config: Stage, inputs: Mapping[str, str]) -> str:
    """A digest of the settings that change results, the stage's version, and the contents of its inputs."""
    return digest([kind, STAGES[kind][2], bare(config, inputs), dict(inputs)])


def _blank(values: Any, path: list[str]) -> None:
    for part in path[:-1]:
        values = values[int(part) if part.isdigit() else part]
    values[path[-1]] = None


def task_of(kind: str, config: Stage) -> Task:
    """Reads every input once, for its digest."""
    inputs = parents(kind, config)
    key = stage_key(kind, config, inputs)
    return Task(kind, config, folder(config, kind), key, inputs, sources(kind, config), bare(config, inputs))


def kept(task: Task) -> dict[str, Any]:
    """The record, where the stage is done with this key and what it left is there; else empty."""
    done = read_done(task.directory)
    return done if done.get("key") == task.key and not gone(task.directory, done) else {}


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

    ``reuse`` or ``resume``: where it is done already with the same key, nothing happens.  ``resume``: goes on from a
    saved state where there is one with the same key; otherwise it starts anew.  ``force``: starts anew whatever is
    there.  ``bar``: shows a progress bar of its own.  ``journal``: a file where its start and end are noted.  A failure is
    kept in words (``failed.json``) and in the log, and raised.  Raises UserError and Interrupted; Locked where another
    process is at it.
    """
    directory = _made(folder(config, kind))
    _made(logs(config, kind))
    task = task_of(kind, config)
    if (reuse or resume) and not force and (done := kept(task)):
        _tidy_done(directory)
        return Outcome(directory.name, True, done, directory)
    keep_memory()
    if config.threads:
        _set_threads(config.threads)
    with held(directory):
        begun = read_record(directory / BEGUN)
        same = begun.get("key") == task.key and not force
        if resume and not reuse and begun and not same and (directory / STATE).exists():
            raise UserError(
                f"{directory}: the state here was made with other settings or inputs; leave --resume out to start anew."
            )
        goes_on = resume and same
        why = begun.get("why", []) if goes_on else differences(task, forced=force or not (resume or reuse))
        (directory / DONE).unlink(missing_ok=True)
        for place in (directory, logs(config, kind)):
            _tidy(place, finished=False)
        if not goes_on:
            for old in (STATE, ProgressFile.NAME):
                (directory / old).unlink(missing_ok=True)
            write_json(directory / BEGUN, {**task.record(), "why": why})
        noted = partial(note, journal, directory.name, task.key)
        noted("resumed" if goes_on else "started")
        record = _worked(task, goes_on, bar, why, noted)
        _tidy(directory, finished=True)
    return Outcome(directory.name, False, record, directory)


def _worked(task: Task, resume: bool, bar: bool, why: Sequence[str], noted: Callable[[str], None]) -> dict[str, Any]:
    """Calls the stage's function, and leaves done.json or failed.json."""
    config, directory, name = task.config, task.directory, task.directory.name
    place, started = logs(config, task.kind), time.time()
    reset_peak()
    identity = StageIdentity(name, directory, place, config.seed, task.key, task.inputs, task.sources, task.settings)
    with Run(identity, config.log_every, config.save_every, resume, bar) as run:
        try:
            write_text(directory / "config.yaml", to_yaml(config))
            module, function, _ = STAGES[task.kind]
            if getattr(config, "precision", "float32") != "float32":
                from accord.runtime.device import resolve_device, slow_precision

                if words := slow_precision(resolve_device(config.device), config.precision):
                    run.say(words)
            metrics = getattr(importlib.import_module(module), function)(config, run)
            _register(run)
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
        except Exception as error:  # whatever it was is kept in words, and raised again
            _keep_failure(task, run, error, noted)
            if words := sentence(error):
                raise UserError(words) from error
            raise
        (directory / FAILED).unlink(missing_ok=True)
        noted("finished")
        if run.stop.raised:  # too late for this stage, and not to be forgotten before the next one
            _tidy(directory, finished=True)
            raise Interrupted(f"{name}: stopped at its end; it is done.")
    return record


def _keep_failure(task: Task, run: Run, error: Exception, noted: Callable[[str], None]) -> None:
    """In words in failed.json, with its traceback in the log; where the disk is full, as far as that goes."""
    _tidy(task.directory, finished=False)  # half-written files, which may be what fills the disk
    try:
        run.log_failure(error)
        words = in_words(error, run.logs / f"{run.name}.log")
        write_json(task.directory / FAILED, failure(task.key, words, run.step))
        noted("failed")
    except OSError:
        pass


def failure(key: str, words: str, step: int = 0) -> dict[str, Any]:
    """The content of failed.json."""
    return {"key": key, "error": words, "step": step, "time": round(time.time(), 3)}


def _register(run: Run) -> None:
    """Tells the registry of the model that a stage left."""
    model = run.directory / "model"
    if not (model / MANIFEST).exists():
        return
    try:
        from accord.registry.store import open_store

        open_store().add(model)
    except Exception as error:  # a registry that cannot be written must not cost a trained model
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        run.say(f"{model} is not in the registry: {first}")


def _tidy_done(directory: Path) -> None:
    """A kill behind the last line of a stage leaves things to take away; nobody is at it, or it is left alone."""
    leftovers = [directory / name for name in (STATE, BEGUN, LOCK, ProgressFile.NAME, FAILED)]
    if any(path.exists() for path in leftovers) or any(directory.glob(".*")):
        try:
            with held(directory):
                _tidy(directory, finished=True)
        except Locked:
            return


def _tidy(directory: Path, finished: bool) -> None:
    """Takes away what a kill in the middle of a write left behind and, once finished, what was kept to go on from."""
    for leftover in leftovers(directory):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    if finished:
        for name in (STATE, BEGUN, ProgressFile.NAME, FAILED):
            (directory / name).unlink(missing_ok=True)


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror}); choose another with out= or logs=.") from None
    return directory


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
