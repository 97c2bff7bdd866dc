"""Every stage as a function: ``accord.stages.sft("configs/rlhf_sft.yaml", seed=1)``.

There is one function for each stage kind.  It takes a YAML file, a mapping or a config, and overrides;
``accord.stages.sft.settings`` is the class of its config (for ``reward`` and ``ppo`` their variants), and
``accord.stages.sft.config(…)`` the config that a call with the same arguments runs.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from accord.config.common import Stage
from accord.config.load import build, put
from accord.config.variants import Variants
from accord.errors import UserError
from accord.io.readers import read_yaml
from accord.stage_kinds.kind import StageKind
from accord.stage_kinds.table import STAGE_KINDS

if TYPE_CHECKING:
    from accord.pipeline.stage import Outcome

Given = str | Path | Mapping[str, Any] | Stage | None


class ConfigFunction(Protocol):
    """Makes the config of one stage kind."""

    def __call__(self, config: Given = None, **overrides: Any) -> Stage: ...


class StageFunction(Protocol):
    """Runs a stage of one kind."""

    settings: type[Stage] | Variants[Stage]
    config: ConfigFunction

    def __call__(self, config: Given = None, **overrides: Any) -> Outcome: ...


def _function(kind: StageKind) -> StageFunction:
    def run(config: Given = None, **overrides: Any) -> Outcome:
        from accord.pipeline.stage import run_stage
        from accord.pipeline.standalone import prepare
        from accord.runtime.output import lasting_output

        with lasting_output():
            prepared = prepare(kind.name, config_of(config, **overrides))
            return run_stage(kind.name, prepared, resume=True, reuse=True)

    def config_of(config: Given = None, **overrides: Any) -> Stage:
        """The config that a call with the same arguments runs."""
        return _config(kind, config, overrides)

    run.__name__ = run.__qualname__ = kind.name
    run.__doc__ = f"""Runs the stage {kind.name}: {kind.help}.

    Stages that it names and that are missing run first; an unchanged stage does not run.  ``overrides`` are settings by
    dotted key or by section: ``seed=1``, ``training={{"batch_size": 8}}``, ``**{{"training.batch_size": 8}}``.
    The outcome has ``folder``, ``metrics`` and ``skipped``.  Raises UserError, and Waiting where it waits for people.
    """
    function = cast(StageFunction, run)
    function.settings, function.config = kind.settings, config_of
    return function


def _config(kind: StageKind, config: Given, overrides: Mapping[str, Any]) -> Stage:
    where = "the settings given"
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if isinstance(config, (str, Path)):
        values, lines = read_yaml(config)
        sources = {key: f"{config} line {line}" for key, line in lines.items()}
        where = str(config)
    else:
        given = config.model_dump() if isinstance(config, Stage) else {} if config is None else config
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            found = repr(config) if not isinstance(config, Mapping) else f"the keys {', '.join(map(repr, config))}"
            raise UserError(
                f"{kind.name}: a config is a YAML file, a mapping of settings by name, or a config; found {found}."
            )
        for key, value in given.items():
            put(values, key, value, where)
    for key, value in overrides.items():
        for dotted, inner in _leaves(key, value, values):
            put(values, dotted, inner, f"{key}=…")
            sources[dotted] = f"{key}=…"
    return build(kind.settings, values, sources, where)


def _leaves(key: str, value: Any, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys and values: a section given in part overrides the existing section key by key."""
    existing: Any = values
    for part in key.split("."):
        existing = existing.get(part) if isinstance(existing, Mapping) else None
    if isinstance(value, Mapping) and isinstance(existing, Mapping):
        return [(f"{key}.{inner}", v) for inner, v in value.items()]
    return [(key, value)]


@functools.cache
def _cached(name: str) -> StageFunction:
    return _function(STAGE_KINDS[name])


def __getattr__(name: str) -> StageFunction:
    if name not in STAGE_KINDS:
        near = difflib.get_close_matches(name, STAGE_KINDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"accord.stages has no {name!r}; the stages are {', '.join(STAGE_KINDS)}{hint}")
    return _cached(name)


def __dir__() -> list[str]:
    return [*STAGE_KINDS]
