"""Grids: ``for: {beta: [0.05, 0.1]}`` expands an entry of a pipeline to ``ppo_beta-0.05`` and ``ppo_beta-0.1``."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accord.errors import UserError

Value = str | int | float | bool
MAX_STAGES = 1000
"""Stages of one grid."""


@dataclass(frozen=True, slots=True)
class Point:
    """One stage of a grid, or a stage without a grid (no values)."""

    name: str
    base: str
    values: Mapping[str, Value]


def points(base: str, variables: Mapping[str, Sequence[Value]]) -> list[Point]:
    """Every combination, the last variable changing fastest.  Raises UserError where there are more than ``MAX_STAGES``."""
    if not variables:
        return [Point(base, base, {})]
    if (count := math.prod(len(values) for values in variables.values())) > MAX_STAGES:
        raise UserError(f"stage {base!r}: its grid ('for') has {count:,} stages, at most {MAX_STAGES:,} are planned.")
    made = []
    for combination in itertools.product(*variables.values()):
        values = dict(zip(variables, combination, strict=True))
        made.append(Point("_".join([base, *(f"{k}-{_shown(v)}" for k, v in values.items())]), base, values))
    return made


def _shown(value: Value) -> str:
    """A value as part of a folder's name."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def filled(value: Any, variables: Mapping[str, Value]) -> Any:
    """Replaces ``{beta}`` everywhere in a value; a string that is only ``{beta}`` becomes the variable's value, with its type."""
    if isinstance(value, Mapping):
        return {key: filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value
    for name, replacement in variables.items():
        if value == f"{{{name}}}":
            return replacement
        value = value.replace(f"{{{name}}}", _shown(replacement))
    return value


def matching(pattern: str, all_points: Sequence[Point]) -> list[str]:
    """The stages that a name, a grid's name or a pattern (``ppo_*``) matches."""
    exact = [p.name for p in all_points if p.name == pattern]
    return exact or [p.name for p in all_points if p.base == pattern or fnmatch.fnmatchcase(p.name, pattern)]


def partner(name: str, mine: Point, all_points: Sequence[Point], where: str) -> str:
    """The stage that ``name`` means in ``mine``: of a grid, the one with the same values.

    Other names are returned unchanged.  Raises UserError where not exactly one stage of the grid fits.
    """
    if "*" in name and (several := matching(name, all_points)):
        raise UserError(f"{where} takes one stage, and {name!r} matches {len(several)}: {', '.join(several[:4])}.")
    grid = [p for p in all_points if p.base == name and p.values]
    if not grid or any(p.name == name for p in all_points):
        return name
    fits = [p for p in grid if all(p.values[k] == v for k, v in mine.values.items() if k in p.values)]
    if len(fits) == 1:
        return fits[0].name
    some = ", ".join(p.name for p in (fits or grid)[:4])
    raise UserError(
        f"{where} is {name!r}, a grid with {len(fits)} stages that fit; name one ({some}), or give this stage the grid's"
        " 'for', which pairs them one to one."
    )


def gathered(models: Any, mine: Point, all_points: Sequence[Point], where: str) -> Any:
    """A list or mapping of models with each pattern (``ppo_*``) expanded to the stages that it matches.

    In a mapping the stages' names are the labels, with ``_`` for a dot.  Raises UserError where none matches.
    """
    others = [p for p in all_points if p.name != mine.name]

    def names(pattern: str) -> list[str]:
        found = matching(pattern, others)
        if not found:
            raise UserError(f"{where}: no stage is called {pattern!r}; there are {', '.join(p.name for p in others)}.")
        return found

    if isinstance(models, Mapping):
        made: dict[str, Any] = {}
        for label, value in models.items():
            for name, one in _each(value, names):
                made[name.replace(".", "_") if name else label] = one
        return made
    if isinstance(models, (list, tuple)):
        return [one for item in models for _, one in _each(item, names)]
    return names(models) if isinstance(models, str) and "*" in models else models


def _each(item: Any, names: Callable[[str], list[str]]) -> list[tuple[str, Any]]:
    """(stage, item) for each stage that the pattern in an item (a name or a section) matches; ('', item) without a pattern."""
    if isinstance(item, str) and "*" in item:
        return [(name, name) for name in names(item)]
    if isinstance(item, Mapping):
        for key, value in item.items():
            if isinstance(value, str) and "*" in value:
                return [(name, {**item, key: name}) for name in names(value)]
    return [("", item)]
