"""One stage: its key, whether it is done, and how it is run so that it can be killed and go on."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config import UserError, digest, to_yaml
from accord.pipeline.references import is_function, references
from accord.registry.manifest import content_digest, write_json
from accord.run import Interrupted, Run, peak_rss_mb
from accord.settings import PretrainedConfig, Stage

DONE = "done.json"

# What a stage calls, and the version of what it does: raised when a change of ours changes its results.
STAGES: dict[str, tuple[str, str, int]] = {
    "demo": ("accord.training.demo", "train", 1),
    "pretrained": ("accord.training.pretrained", "train", 1),
    "base": ("accord.training.base", "train", 1),
    "sft": ("accord.training.sft", "train", 1),
    "pairs": ("accord.training.pairs", "train", 2),
    "reward": ("accord.training.reward_model", "train", 2),
    "ppo": ("accord.training.ppo", "train", 2),
    "dpo": ("accord.training.dpo", "train", 1),
    "compare": ("accord.evaluation.suite", "compare", 1),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage ended."""

    name: str
    skipped: bool
    done: Mapping[str, Any]


def folder(config: Stage, kind: str) -> Path:
    return Path(config.out) / (config.name or kind)


def logs(config: Stage, kind: str) -> Path:
    return Path(config.logs) / (config.name or kind)


def parents(kind: str, config: Stage) -> dict[str, str]:
    """Digests of what a resolved config names, by config key: contents, never paths."""
    found = {}
    for reference, value in references(kind, config):
        exists = not is_function(value) and Path(value).exists()
        found[reference.key] = content_digest(Path(value)) if exists else value
    if isinstance(config, PretrainedConfig) and Path(config.source).exists():
        found["source"] = content_digest(Path(config.source))
    return found


def stage_key(kind: str, config: Stage, inputs: Mapping[str, str]) -> str:
    """A digest of the settings that change results, the stage's version, and the contents of its inputs."""
    bare = config.model_dump(mode="json", exclude=set(config.runtime))
    for name in inputs:
        _blank(bare, name.split("."))
    return digest([kind, STAGES[kind][2], bare, dict(inputs)])


def _blank(values: Any, path: list[str]) -> None:
    for part in path[:-1]:
        values = values[int(part) if part.isdigit() else part]
    values[path[-1]] = None


def read_done(directory: Path) -> dict[str, Any]:
    """The record of a finished stage; empty where it is not finished."""
    try:
        return dict(json.loads((directory / DONE).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def run_stage(kind: str, config: Stage, *, resume: bool, reuse: bool) -> Outcome:
    """Runs a stage whose config is resolved.

    ``reuse`` or ``resume``: where it is done already with the same key, nothing happens.  ``resume``: goes on from a
    saved state where there is one with the same key; otherwise it starts anew.  Raises UserError and Interrupted.
    """
    directory = _made(folder(config, kind))
    _made(logs(config, kind))
    inputs = parents(kind, config)
    key = stage_key(kind, config, inputs)
    done = read_done(directory)
    if (reuse or resume) and done.get("key") == key:
        _tidy(directory, finished=True)
        return Outcome(directory.name, True, done)
    if config.threads:
        _set_threads(config.threads)
    begun = directory / "begun.json"
    same = begun.exists() and json.loads(begun.read_text(encoding="utf-8")).get("key") == key
    if resume and not reuse and begun.exists() and not same and (directory / "state.pt").exists():
        raise UserError(
            f"{directory}: the state here was made with other settings or inputs; leave --resume out to start anew."
        )
    (directory / DONE).unlink(missing_ok=True)
    _tidy(directory, finished=False)
    if not (resume and same):
        (directory / "state.pt").unlink(missing_ok=True)
        write_json(begun, {"key": key})
    _reset_peak()
    name = config.name or kind
    with Run(
        name, directory, logs(config, kind), config.seed, config.log_every, config.save_every, resume and same
    ) as run:
        run.key, run.parents = key, inputs
        (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        module, function, _ = STAGES[kind]
        metrics = getattr(importlib.import_module(module), function)(config, run)
        record = {
            "kind": kind,
            "key": key,
            "inputs": inputs,
            "seconds": round(run.seconds, 2),
            "peak_rss_mb": round(_peak(), 1),
            "metrics": dict(metrics),
        }
        write_json(directory / DONE, record)
        _tidy(directory, finished=True)
        if run.stop.raised:  # too late for this stage, and not to be forgotten before the next one
            raise Interrupted(f"{name}: stopped at its end; it is done.")
    return Outcome(directory.name, False, record)


def _tidy(directory: Path, finished: bool) -> None:
    """Takes away what a kill in the middle of a write left behind and, once finished, what was kept to go on from."""
    for leftover in [*directory.glob(".*.tmp"), *directory.glob(".*.old")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    if finished:
        for name in ("state.pt", "begun.json"):
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


def _reset_peak() -> None:
    """Linux forgets the process's peak of resident memory when asked to; elsewhere peaks only grow."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> float:
    """Peak resident memory since the reset, in MB."""
    try:
        for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return peak_rss_mb()
