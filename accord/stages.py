"""Every stage as a function: ``accord.stages.sft("configs/rlhf_sft.yaml", seed=1)``.

There is one for each kind of stage, and each takes a YAML file, a mapping or a config, and settings that go over it;
``accord.stages.sft.settings`` is the class of its config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.config.settings import CONFIGS, Stage

if TYPE_CHECKING:
    from accord.pipeline.stage import Outcome


@dataclass(frozen=True, slots=True)
class StageFunction:
    """One kind of stage, to be called."""

    kind: str

    @property
    def settings(self) -> type[Stage]:
        return CONFIGS[self.kind]

    def __call__(self, config: str | Path | Mapping[str, Any] | Stage | None = None, **overrides: Any) -> Outcome:
        """Runs the stage, after what it names and is not there; where nothing changed, it is kept as it is.

        ``overrides`` are settings by their dotted keys or by section: ``seed=1``, ``training={"batch_size": 8}``,
        ``**{"kl.beta": 0.1}``.  The outcome has ``folder``, ``metrics`` and ``skipped``.  Raises UserError.
        """
        from accord.pipeline.stage import run_stage
        from accord.pipeline.standalone import prepare

        made = self.config(config, **overrides)
        return run_stage(self.kind, prepare(self.kind, made), resume=True, reuse=True)

    def config(self, config: str | Path | Mapping[str, Any] | Stage | None = None, **overrides: Any) -> Stage:
        """The config that a call with the same arguments runs with."""
        from accord.config.load import build, put
        from accord.io.readers import read_yaml

        where = "the settings given"
        if isinstance(config, (str, Path)):
            values, lines = read_yaml(config)
            sources = {key: f"{config} line {line}" for key, line in lines.items()}
            where = str(config)
        else:
            given = config.model_dump() if isinstance(config, Stage) else config or {}
            values, sources = {}, {}
            for key, value in given.items():
                put(values, key, value, where)
        for key, value in overrides.items():
            for dotted, inner in _leaves(key, value, values):
                put(values, dotted, inner, f"{key}=…")
                sources[dotted] = f"{key}=…"
        return build(CONFIGS[self.kind], values, sources, where)


def _leaves(key: str, value: Any, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A section given in part goes over the section that is there, key by key."""
    there: Any = values
    for part in key.split("."):
        there = there.get(part) if isinstance(there, Mapping) else None
    if isinstance(value, Mapping) and isinstance(there, Mapping):
        return [(f"{key}.{inner}", v) for inner, v in value.items()]
    return [(key, value)]


def __getattr__(kind: str) -> StageFunction:
    if kind not in CONFIGS:
        raise AttributeError(f"accord.stages has no {kind!r}; there are {', '.join(CONFIGS)}")
    return StageFunction(kind)


def __dir__() -> list[str]:
    return [*CONFIGS]
