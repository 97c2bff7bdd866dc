"""A pipeline: a YAML of stages, each with its config and overrides, joined by the names of earlier stages."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from accord.config import Section, UserError, build, load, parse_override, put, read_yaml
from accord.pipeline.references import references, require, resolve
from accord.pipeline.stage import Outcome, folder, run_stage
from accord.registry.manifest import versions, write_json
from accord.run import console
from accord.settings import CONFIGS, Stage


class Entry(Section):
    """One stage of a pipeline."""

    kind: str = ""
    """demo, base, sft, pairs, reward, ppo, dpo or compare; the stage's own name where empty."""
    config: str = ""
    """A config file, relative to the pipeline's; defaults where empty."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted overrides."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Dotted config key: the earlier stage that it takes."""


class PipelineConfig(Section):
    """Stages in the order they run."""

    seed: int = 0
    """For every stage that does not set its own."""
    out: str = "checkpoints/rlhf"
    logs: str = "logs/rlhf"
    device: str = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    stages: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage with its config, names not yet resolved."""

    name: str
    kind: str
    config: Stage


def plan(path: str | Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, list[Planned]]:
    """Reads and validates a whole pipeline, every stage's config and the names it takes included; nothing runs.

    Overrides are ``seed=1`` for the pipeline, or ``ppo.kl.beta=0.1`` for the stage named ppo.  Raises UserError.
    """
    _, lines = read_yaml(path)
    heads = [parse_override(o)[0].split(".")[0] for o in overrides]
    pipeline = load(
        PipelineConfig, path, [o for o, h in zip(overrides, heads, strict=True) if h in PipelineConfig.model_fields]
    )
    if not pipeline.stages:
        raise UserError(f"{path}: no stages; write at least one under 'stages:'.")
    known = [*pipeline.stages, *PipelineConfig.model_fields]
    for override, head in zip(overrides, heads, strict=True):
        if head not in known:
            hint = _near(head, known, f"there are {', '.join(known)}.")
            raise UserError(f"override {override!r}: {path} has no stage or setting {head!r}; {hint}")
        if head in pipeline.stages and "." not in parse_override(override)[0]:
            raise UserError(f"override {override!r}: name the setting too, as in {head}.seed=1.")
    planned: list[Planned] = []
    for name, entry in pipeline.stages.items():
        mine = [o.split(".", 1)[1] for o, h in zip(overrides, heads, strict=True) if h == name]
        places = {
            key.removeprefix(f"stages.{name}."): f"{path} line {line}, stage {name!r}"
            for key, line in lines.items()
            if key.startswith(f"stages.{name}.")
        }
        planned.append(_planned(Path(path), pipeline, name, entry, [p.name for p in planned], mine, places))
    _check_names(path, planned)
    return pipeline, planned


def _near(name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def _planned(
    path: Path,
    pipeline: PipelineConfig,
    name: str,
    entry: Entry,
    earlier: Sequence[str],
    overrides: Sequence[str],
    places: Mapping[str, str],
) -> Planned:
    kind = entry.kind or name
    where = f"{path}, stage {name!r}"
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{where}: a stage's name becomes a folder; use letters, digits, _ and - only.")
    if kind not in CONFIGS:
        hint = _near(kind, list(CONFIGS), f"there are {', '.join(CONFIGS)}.")
        raise UserError(f"{places.get('kind', where)}: unknown kind {kind!r}; {hint}")
    for key, source in entry.inputs.items():
        if source not in earlier:
            hint = _near(source, earlier, f"earlier stages are {', '.join(earlier) or 'none'}.")
            place = places.get(f"inputs.{key}", where)
            raise UserError(f"{place}: inputs.{key} is {source!r}, which is no earlier stage; {hint}")
    shared = {"seed": pipeline.seed, "device": pipeline.device, "threads": pipeline.threads}
    values, lines = read_yaml(path.parent / entry.config) if entry.config else ({}, {})
    sources = {key: f"{path.parent / entry.config} line {line}" for key, line in lines.items()}
    merged: dict[str, Any] = {**shared, **values}
    changes = [(key, value, places.get(f"set.{key}", where)) for key, value in entry.set.items()]
    changes += [(key, value, places.get(f"inputs.{key}", where)) for key, value in entry.inputs.items()]
    changes += [(*parse_override(o), f"override '{name}.{o}'") for o in overrides]
    for key, value, source in changes:
        if key in ("out", "logs", "name"):
            raise UserError(f"{source}: {key!r} is the pipeline's to set, not a stage's; stages lie in <out>/<stage>.")
        put(merged, key, value, source)
        sources[key] = source
    merged |= {"out": pipeline.out, "logs": pipeline.logs, "name": name}
    return Planned(name, kind, build(CONFIGS[kind], merged, sources, where))


def run_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs what is not done, in order, and writes ``results.json`` beside the stages' folders; returns its content.

    A stage whose settings and inputs are unchanged is skipped; one that was interrupted goes on.  Raises UserError and
    Interrupted.
    """
    started = time.monotonic()
    pipeline, planned = plan(path, overrides)
    folders = {p.name: folder(p.config, p.kind) for p in planned}
    outcomes: dict[str, Outcome] = {}
    for stage in planned:
        config = resolve(stage.kind, stage.config, folders.get)
        require(config, stage.kind, folders)
        outcome = run_stage(stage.kind, config, resume=True, reuse=True)
        outcomes[stage.name] = outcome
        took = "unchanged, kept" if outcome.skipped else f"done in {outcome.done['seconds']:.0f} s"
        console.print(f"✓ {stage.name}: {took}", markup=False)
    results = collect_results(pipeline, planned, folders, outcomes)
    target = Path(pipeline.out) / "results.json"
    write_json(target, results)
    if all(outcome.skipped for outcome in outcomes.values()):
        _show_again(planned, folders)
    console.print(f"\nwrote {target} ({time.monotonic() - started:.0f} s in all)", markup=False)
    return results


def _check_names(path: str | Path, planned: Sequence[Planned]) -> None:
    """Every name that a stage takes is an earlier stage or exists already.  Raises UserError before anything runs."""
    names = [stage.name for stage in planned]
    for place, stage in enumerate(planned):
        earlier = names[:place]
        where = f"{path}, stage {stage.name!r}: "
        for reference, value in references(stage.kind, stage.config):
            if value in names and value not in earlier:
                raise UserError(f"{where}{reference.key} takes {value!r}, which runs later; move it up.")
        require(stage.config, stage.kind, earlier, made=earlier, where=where)


def collect_results(
    pipeline: PipelineConfig,
    planned: Sequence[Planned],
    folders: Mapping[str, Path],
    outcomes: Mapping[str, Outcome],
) -> dict[str, Any]:
    """The comparison's figures, and for each stage what it took."""
    results: dict[str, Any] = {}
    for stage in planned:
        if stage.kind == "compare":
            results |= json.loads((folders[stage.name] / "results.json").read_text(encoding="utf-8"))
    keys = ("seconds", "peak_rss_mb")
    results["stages"] = {name: {k: outcome.done[k] for k in keys} for name, outcome in outcomes.items()}
    return {**results, "seed": pipeline.seed, "versions": versions()}


def _show_again(planned: Sequence[Planned], folders: Mapping[str, Path]) -> None:
    """What the comparison printed when it ran."""
    for stage in planned:
        text = folders[stage.name] / "results.txt"
        if stage.kind == "compare" and text.exists():
            console.print(text.read_text(encoding="utf-8"), markup=False)
