"""Runs a single stage, and first the missing stages that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accord.config.common import ParallelStage, Stage, TextModel
from accord.config.sft import BaseConfig
from accord.errors import UserError
from accord.io.readers import read_json_if_present
from accord.pipeline.checks import check_device, check_folders, check_functions, check_rows
from accord.pipeline.previous import PREVIOUS
from accord.pipeline.records import DONE, read_begun, read_done
from accord.pipeline.references import SMALL, fetch, references, require, resolve
from accord.pipeline.stage import Outcome, run_stage
from accord.pipeline.task import folder, sources
from accord.runtime.console import console
from accord.stage_kinds.table import STAGE_KINDS

Make = Callable[[str, Stage, str], None]
"""Makes a missing stage: its kind, its config, and a sentence on why it is needed."""


def run_alone(kind: str, config: Stage, resume: bool) -> Outcome:
    """Runs missing stages, then the stage."""
    outcome = run_stage(kind, prepare(kind, config), resume=resume, reuse=False)
    if outcome.skipped and resume:
        console.print(f"{folder(config, kind)} is already done with these settings; nothing to resume", markup=False)
    return outcome


def run_missing(kind: str, config: Stage, why: str) -> None:
    """Runs a missing stage with default settings, and first those that it names."""
    console.print(why, markup=False)
    run_stage(kind, prepare(kind, config), resume=True, reuse=True)


def prepare(kind: str, config: Stage, make: Make = run_missing) -> Stage:
    """The config with every name resolved, after ``make`` has made missing stages.

    A name is a stage kind, or the name of a finished stage in ``out``.  Raises UserError before anything has run for all
    that can be checked without the missing stages.
    """
    done = {path.parent.name: path.parent for path in Path(config.out).glob(f"*/{DONE}")}
    require(config, kind, [*STAGE_KINDS, *done], made=[*STAGE_KINDS, *done, *SMALL])
    _check(kind, config, done)
    folders: dict[str, Path] = {}
    for reference, value in references(kind, config):
        if value in SMALL and reference.sort == "model":
            folders[value] = _small_base(value, config, make)
        elif value in STAGE_KINDS and not Path(value).exists():
            folders[value] = _default(value, config, reference.key, make)
        elif value in done and not Path(value).exists():
            folders[value] = done[value]
    resolved = resolve(kind, config, folders.get)
    require(resolved, kind, list(STAGE_KINDS))
    return resolved


def _check(kind: str, config: Stage, done: Mapping[str, Path]) -> None:
    """Checks a stage before the missing stages that it names run.  Raises UserError."""
    name = folder(config, kind).name
    if name in STAGE_KINDS and name != kind:
        raise UserError(
            f"name: {name!r} is where the stage {name} is looked for, and this one is of kind {kind!r}; choose another name=."
        )
    made = {key: done.get(key, Path(config.out) / key) for key in (*STAGE_KINDS, *done) if not Path(key).exists()}
    for reference, value in references(kind, config):
        if value in made and made[value] == folder(config, kind):
            raise UserError(
                f"{reference.key}: {value!r} is the folder that this stage would write, so it would replace its own input;"
                f" choose another name=, as in name={name}_again."
            )
    resolved = resolve(kind, config, made.get)
    check_folders(kind, config, sources(kind, resolved))
    check_functions(kind, config)
    check_device(config)
    if any(value in made and not read_done(made[value]) for _, value in references(kind, config)):
        check_rows(kind, config)
        fetch(kind, resolved, partial(console.print, markup=False))


def _default(name: str, config: Stage, key: str, make: Make) -> Path:
    default = STAGE_KINDS[name].settings(**_shared(config), **_parallel(config, name))
    directory = folder(default, name)
    if not read_done(directory):
        make(name, default, f"{key} names {name!r}, {_absence(directory)}: running it first")
    return directory


def _absence(directory: Path) -> str:
    """In what way a stage is missing from its folder, and where results of it are that are not taken for it."""
    words = "whose run in {} is not finished" if read_begun(directory) else "which is not in {} yet"
    earlier = sorted(path.parent for path in directory.parent.glob(f"{PREVIOUS}/{directory.name}-*/{DONE}"))
    aside = f" (finished runs with their own settings: {', '.join(map(str, earlier))})" if earlier else ""
    return words.format(directory.parent) + aside


def _shared(config: Stage) -> dict[str, Any]:
    return {key: getattr(config, key) for key in ("seed", "out", "logs", "device", "threads")}


def _parallel(config: Stage, kind: str) -> dict[str, Any]:
    """How many processes a missing stage of a kind runs on: as many as the stage that needs it, where it can."""
    if isinstance(config, ParallelStage) and isinstance(STAGE_KINDS[kind].settings(), ParallelStage):
        return {"parallel": config.parallel.model_dump()}
    return {}


def _small_base(family: str, config: Stage, make: Make) -> Path:
    """The small base model of a family with the config's sizes, trained first if missing."""
    model = getattr(config, "model", TextModel())  # compare has none
    standard = Path(config.out) / "base"
    if read_done(standard) and _fits(standard, family, model.d_model, model.n_layers):
        return standard
    name = "base" if not read_done(standard) else f"base_{family}_{model.d_model}x{model.n_layers}"
    wanted = BaseConfig.model_validate(
        {
            **_shared(config),
            **_parallel(config, "base"),
            "name": name,
            "model": {"base_model": family, "d_model": model.d_model, "n_layers": model.n_layers},
        }
    )
    directory = folder(wanted, "base")
    if not read_done(directory):
        make(
            "base",
            wanted,
            f"model.base_model is {family!r} (hidden size {model.d_model}, {model.n_layers} layers), and no such base model is in"
            f" {config.out} yet: training it first (about a minute or two)",
        )
    return directory


def _fits(directory: Path, family: str, d_model: int, n_layers: int) -> bool:
    remedy = "remove this folder to train it again."
    config = read_json_if_present(directory / "model" / "config.json", remedy) or {}
    is_mamba = config.get("model_type") == "mamba"
    sizes = (config.get("hidden_size"), config.get("num_hidden_layers"))
    return is_mamba == (family == "mamba") and sizes == (d_model, n_layers)
