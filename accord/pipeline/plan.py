"""Reads and checks a whole pipeline: stages, grids, configs, and the dependencies between stages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from accord.config.common import Parallel, ParallelStage, Stage, name_problem
from accord.config.load import build, load, parse_override, put
from accord.config.numbers import Seed, Threads
from accord.config.section import Section
from accord.errors import UserError
from accord.io.readers import read_yaml
from accord.pipeline.grid import Point, Value, filled, gathered, matching, partner, points
from accord.pipeline.references import references, renamed, require
from accord.pipeline.wrong_file import require_file, require_pipeline
from accord.stage_kinds.table import STAGE_KINDS


class Entry(Section):
    """One stage of a pipeline, or a grid of them."""

    kind: str = ""
    """Stage kind; empty: the stage's name."""
    config: str = ""
    """Config file, relative to the pipeline's file; empty: defaults."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted overrides."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Inputs, as dotted config key: stage."""
    for_: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(default_factory=dict, alias="for")
    """Grid, as variable: values.  {variable} in config, set and inputs stands for a value."""


class PipelineConfig(Section):
    """A pipeline: stages, each of which runs after the stages that it needs."""

    seed: Seed = 0
    """Seed of every stage that does not set its own."""
    out: str = "checkpoints/rlhf"
    logs: str = "logs/rlhf"
    device: str = "auto"
    threads: Threads = 0
    parallel: Parallel = Parallel()
    """Processes of every stage that several can train and that does not set its own."""
    stages: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage and its config, with names not yet resolved."""

    name: str
    kind: str
    config: Stage
    base: str = ""
    """Name of the grid, or of the stage."""
    needs: tuple[str, ...] = ()
    """Names of the stages that it depends on."""
    files: tuple[str, ...] = ()
    """Config files that it was read from."""


def plan(path: str | Path, overrides: Sequence[str] = ()) -> tuple[PipelineConfig, list[Planned]]:
    """Reads and checks a whole pipeline, including every stage's config and inputs, without running anything.

    Stages are in topological order, otherwise in the file's.  Overrides are ``seed=1`` for the pipeline, or
    ``ppo.kl.beta=0.1`` for the stage (or all stages of the grid) named ppo.  Raises UserError.
    """
    require_file(path)
    values, lines = read_yaml(path)
    require_pipeline(path, values)
    heads = [parse_override(o)[0].split(".")[0] for o in overrides]
    own = [o for o, head in zip(overrides, heads, strict=True) if head in PipelineConfig.model_fields]
    pipeline = load(PipelineConfig, path, own)
    if not pipeline.stages:
        raise UserError(f"{path}: no stages; write at least one under 'stages:'.")
    grid = _points(path, pipeline, lines)
    mine = _overrides_by_stage(path, [o for o in overrides if o not in own], grid)
    planned = []
    for point in grid:
        places = {
            key.removeprefix(f"stages.{point.base}."): f"{path} line {line}, stage {point.name!r}"
            for key, line in lines.items()
            if key.startswith(f"stages.{point.base}.")
        }
        planned.append(_Reader(Path(path), pipeline, point, grid, places).planned(mine[point.name]))
    _check_names(path, planned)
    _check_grids(path, planned, grid)
    return pipeline, _ordered(path, planned)


def _near(name: str, known: Sequence[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def _points(path: str | Path, pipeline: PipelineConfig, lines: Mapping[str, int]) -> list[Point]:
    """All stages, grids expanded.  Raises UserError for a name that is not a valid folder name or not unique."""
    made: list[Point] = []
    for base, entry in pipeline.stages.items():
        where = f"{path}, stage {base!r}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", base):
            raise UserError(f"{where}: a stage's name is its folder's; use letters, digits, _ and - only.")
        for variable in entry.for_:
            if not variable.isidentifier():
                line = lines.get(f"stages.{base}.for.{variable}", 0)
                raise UserError(f"{path} line {line}, stage {base!r}: for.{variable}: use letters, digits and _ only.")
        made += points(base, entry.for_)
    names = [p.name for p in made]
    for name in names:
        if problem := name_problem(name):
            raise UserError(f"{path}: the stage's name {problem}.")
        if names.count(name) > 1:
            raise UserError(f"{path}: two stages would be called {name!r}; change a name or a grid's values.")
    return made


def _overrides_by_stage(path: str | Path, overrides: Sequence[str], grid: Sequence[Point]) -> dict[str, list[str]]:
    """Each stage's overrides, without the stage's name.  Raises UserError for an unknown stage."""
    names = sorted({p.name for p in grid} | {p.base for p in grid}, key=len, reverse=True)
    mine: dict[str, list[str]] = {p.name: [] for p in grid}
    for override in overrides:
        key, _ = parse_override(override)
        head = next((n for n in names if key == n or key.startswith(f"{n}.")), key.split(".")[0])
        if head not in names:
            known = [*dict.fromkeys([*(p.base for p in grid), *(p.name for p in grid)]), *PipelineConfig.model_fields]
            hint = _near(head, known, f"there are {', '.join(known)}.")
            raise UserError(f"override {override!r}: {path} has no stage or setting {head!r}; {hint}")
        if key == head:
            raise UserError(f"override {override!r}: name the setting too, as in {head}.seed=1.")
        for name in matching(head, grid):
            mine[name].append(f"{key[len(head) + 1 :]}={override.partition('=')[2]}")
    return mine


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes one stage of the plan from its entry."""

    path: Path
    pipeline: PipelineConfig
    point: Point
    grid: Sequence[Point]
    places: Mapping[str, str]
    """Line of each of the entry's keys, for error messages."""

    def planned(self, overrides: Sequence[str]) -> Planned:
        entry, name = self.pipeline.stages[self.point.base], self.point.name
        kind = entry.kind or self.point.base
        where = f"{self.path}, stage {name!r}"
        if kind not in STAGE_KINDS:
            hint = _near(kind, list(STAGE_KINDS), f"there are {', '.join(STAGE_KINDS)}.")
            raise UserError(f"{self.places.get('kind', where)}: unknown kind {kind!r}; {hint}")
        inputs = self.inputs(entry, where)
        file = str(self.path.parent / filled(entry.config, self.point.values)) if entry.config else ""
        values, lines = read_yaml(file) if file else ({}, {})
        sources = {key: f"{file} line {line}" for key, line in lines.items()}
        shared = {"seed": self.pipeline.seed, "device": self.pipeline.device, "threads": self.pipeline.threads}
        merged: dict[str, Any] = {**shared, **values}
        changes = [(k, v, self.places.get(f"set.{k}", where)) for k, v in self.filled(entry.set).items()]
        changes += [(k, v, self.places.get(f"inputs.{k}", where)) for k, v in inputs.items()]
        changes += [(*parse_override(o), f"override '{name}.{o}'") for o in overrides]
        for key, value, source in changes:
            if key in ("out", "logs", "name"):
                raise UserError(
                    f"{source}: {key!r} is set by the pipeline, not by a stage; a stage's folder is <out>/<stage>."
                )
            put(merged, key, value, source)
            sources[key] = source
        merged |= {"out": self.pipeline.out, "logs": self.pipeline.logs, "name": name}
        if "models" in merged:
            merged["models"] = gathered(merged["models"], self.point, self.grid, sources.get("models", where))
        config = build(STAGE_KINDS[kind].settings, merged, sources, where)
        if isinstance(config, ParallelStage) and self.pipeline.parallel != Parallel():
            merged["parallel"] = {**self.pipeline.parallel.model_dump(), **merged.get("parallel", {})}
            config = build(STAGE_KINDS[kind].settings, merged, sources, where)
        config = renamed(kind, config, lambda key, v: partner(v, self.point, self.grid, f"{where}: {key}"))
        return Planned(name, kind, config, self.point.base, self.needs(kind, config, inputs), (file,) if file else ())

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: filled(value, self.point.values) for key, value in values.items()}

    def inputs(self, entry: Entry, where: str) -> dict[str, str]:
        """The entry's inputs.  Raises UserError for one that is not another stage."""
        inputs = {key: str(value) for key, value in self.filled(entry.inputs).items()}
        known = list(dict.fromkeys(n for p in self.grid for n in (p.base, p.name) if p.name != self.point.name))
        for key, source in inputs.items():
            if not matching(source, [p for p in self.grid if p.name != self.point.name]):
                hint = _near(source, known, f"the others are {', '.join(known) or 'none'}.")
                place = self.places.get(f"inputs.{key}", where)
                raise UserError(f"{place}: inputs.{key} is {source!r}, which is not another stage; {hint}")
        return inputs

    def needs(self, kind: str, config: Stage, inputs: Mapping[str, str]) -> tuple[str, ...]:
        names = {p.name for p in self.grid}
        taken = [value for _, value in references(kind, config) if value in names]
        return tuple(dict.fromkeys([*taken, *(n for n in inputs.values() if n in names)]))


def _check_names(path: str | Path, planned: Sequence[Planned]) -> None:
    """Raises UserError where an input of a stage is neither a stage nor an existing path."""
    for stage in planned:
        others = [other.name for other in planned if other is not stage]
        require(stage.config, stage.kind, others, made=[*others, stage.name], where=f"{path}, stage {stage.name!r}: ")


def _check_grids(path: str | Path, planned: Sequence[Planned], grid: Sequence[Point]) -> None:
    """Raises UserError where two stages of a grid differ only in name."""
    seen: dict[str, str] = {}
    for stage, point in zip(planned, grid, strict=True):
        if not point.values:
            continue
        text = f"{point.base} {stage.config.model_copy(update={'name': ''}).model_dump_json()}"
        if text in seen:
            raise UserError(
                f"{path}, stage {point.base!r}: {seen[text]} and {stage.name} have the same settings; use the grid's"
                f" variables, as in set: {{ …: '{{{next(iter(point.values))}}}' }}."
            )
        seen[text] = stage.name


def _ordered(path: str | Path, planned: Sequence[Planned]) -> list[Planned]:
    """Topological order.  Raises UserError naming the stages of a cycle."""
    waiting, order = list(planned), list[Planned]()
    while waiting:
        placed = {p.name for p in order}
        ready = next((p for p in waiting if placed.issuperset(p.needs)), None)
        if ready is None:
            raise UserError(
                f"{path}: {_cycle(waiting)}; stages cannot depend on each other in a cycle: change the input of one of them."
            )
        order.append(ready)
        waiting.remove(ready)
    return order


def _cycle(waiting: Sequence[Planned]) -> str:
    needs = {p.name: [n for n in p.needs if n in {w.name for w in waiting}] for p in waiting}
    walk = [waiting[0].name]
    while walk[-1] not in walk[:-1]:
        walk.append(needs[walk[-1]][0])
    cycle = walk[walk.index(walk[-1]) :]
    return " takes ".join(f"{name!r}" for name in cycle)


def selected(patterns: Sequence[str], planned: Sequence[Planned], option: str) -> set[str]:
    """The stages that ``--only`` or ``--force`` select: names, grids, patterns, or comma-separated lists of these.

    Raises UserError for one that matches no stage.
    """
    names: set[str] = set()
    known = [p.name for p in planned]
    for pattern in (part.strip() for text in patterns for part in text.split(",") if part.strip()):
        found = matching(pattern, [Point(p.name, p.base, {}) for p in planned])
        if not found:
            raise UserError(
                f"{option} {pattern}: no such stage; {_near(pattern, known, 'there are ' + ', '.join(known))}"
            )
        names |= set(found)
    return names
