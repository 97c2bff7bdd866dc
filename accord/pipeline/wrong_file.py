"""A file that is no pipeline, given as one: what it is, and what to type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accord.config.section import known_keys
from accord.errors import UserError
from accord.stage_kinds.table import STAGE_KINDS


def require_pipeline(path: str | Path, values: Mapping[str, Any]) -> None:
    """Raises UserError where the values of a file are none, or settings of a stage that no pipeline has."""
    if not values:
        raise UserError(f"{path}: no stages; write at least one under 'stages:'.")
    kinds = [] if {*values} <= {"seed", "out", "logs", "device", "threads", "stages"} else kinds_with(values)
    if not kinds:
        return
    kind = max(kinds, key=lambda name: (name == values.get("name"), name in Path(path).stem, name == "sft"))
    raise UserError(f"{path}: the config of one stage, not a pipeline; type accord {kind} --config {path}.")


def require_file(path: str | Path) -> None:
    """Raises UserError where a stage is named in place of a file."""
    if str(path) in STAGE_KINDS and not Path(path).exists():
        raise UserError(
            f"{path}: a stage, not a pipeline's file; type accord {path} for the stage alone, or accord run"
            f" configs/pipeline.yaml --only {path}."
        )


def kinds_with(values: Mapping[str, Any]) -> list[str]:
    """The stage kinds whose settings have all of a file's keys, in the order of the table."""
    found = []
    for name, kind in STAGE_KINDS.items():
        settings = kind.settings
        classes: Mapping[str, Any] = getattr(settings, "classes", {"": settings})
        if any({*_keys(values)} <= {*known_keys(cls)} for cls in classes.values()):
            found.append(name)
    return found


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
