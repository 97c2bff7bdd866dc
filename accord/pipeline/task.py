"""A stage with its resolved config and its key, a digest of everything that determines its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config.common import ParallelStage, Stage
from accord.config.functions import is_function
from accord.config.load import put
from accord.config.section import Section, digest
from accord.data.files.arrow import arrow_files, is_arrow_folder
from accord.io.digests import content_digest, digest_of_files, file_digest
from accord.pipeline.records import missing_outputs, read_done
from accord.pipeline.references import is_source_of_hub, references, value_at
from accord.pipeline.suited import suited
from accord.stage_kinds.table import STAGE_KINDS


@dataclass(frozen=True, slots=True)
class Task:
    """A stage with a resolved config, and the parts of its key."""

    kind: str
    config: Stage
    directory: Path
    key: str
    inputs: Mapping[str, str]
    """Config key: content digest of the input."""
    sources: Mapping[str, str]
    """Config key: path of the input, or its name where it is not a path."""
    settings: Mapping[str, Any]
    """Settings that change results, with inputs set to None."""
    decided: Mapping[str, str] = field(default_factory=dict)
    """Settings that the config left open, and what they are, in words for the plan."""

    def record(self) -> dict[str, Any]:
        """The record that later runs are compared with."""
        return {
            "kind": self.kind,
            "key": self.key,
            "inputs": dict(self.inputs),
            "sources": dict(self.sources),
            "settings": dict(self.settings),
            "version": STAGE_KINDS[self.kind].version,
        }


def folder(config: Stage, kind: str) -> Path:
    """The folder of a stage's results."""
    return Path(config.out) / (config.name or kind)


def logs(config: Stage, kind: str) -> Path:
    """The folder of a stage's logs."""
    return Path(config.logs) / (config.name or kind)


def sources(kind: str, config: Stage) -> dict[str, str]:
    """The inputs of a resolved config, by config key."""
    found = {reference.key: value for reference, value in references(kind, config)}
    values = config.model_dump()
    files = {key: value_at(values, key) for key in STAGE_KINDS[kind].files}
    return found | {key: value for key, value in files.items() if Path(value).exists() or is_source_of_hub(value)}


def parents(kind: str, config: Stage) -> dict[str, str]:
    """Content digests of a resolved config's inputs, by config key."""
    named = sources(kind, config)
    files = {key: not is_function(value) and Path(value).exists() for key, value in named.items()}
    return {key: _digest(Path(value)) if files[key] else value for key, value in named.items()}


def _digest(path: Path) -> str:
    """The digest of an input; of an Arrow folder that of its rows' files, since ``datasets`` leaves others there."""
    if not is_arrow_folder(path):
        return content_digest(path)
    return digest_of_files({str(number): file_digest(file) for number, file in enumerate(arrow_files(path))})


def bare(config: Stage, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The settings that change results, as plain values, with inputs set to None."""
    values = config.model_dump(mode="json", exclude=_runtime(config))
    if isinstance(config, ParallelStage) and config.parallel.mixed_precision != "float32":
        values["parallel"] = {"mixed_precision": config.parallel.mixed_precision}
    for name in inputs:
        _blank(values, name.split("."))
    return values


def _runtime(section: Section) -> dict[str, Any]:
    """The settings of a section, and of sections in it, that do not change results, as pydantic excludes them."""
    inner = {name: getattr(section, name) for name in type(section).model_fields}
    below = {name: _runtime(value) for name, value in inner.items() if isinstance(value, Section)}
    return {**{name: found for name, found in below.items() if found}, **dict.fromkeys(section.omitted(), True)}


def stage_key(kind: str, config: Stage, inputs: Mapping[str, str]) -> str:
    """A digest of the settings that change results, the stage's version, and the contents of its inputs.

    Open settings count with what they are decided to be, and retired settings with their defaults, so that stages that were
    made with them need not run again.
    """
    config = suited(kind, config).config
    settings = bare(config, inputs)
    for key, default in config.retired.items():
        put(settings, key, default, kind)
    return digest([kind, STAGE_KINDS[kind].version, settings, dict(inputs)])


def _blank(values: Any, path: list[str]) -> None:
    for part in path[:-1]:
        values = values[int(part) if part.isdigit() else part]
    values[path[-1]] = None


def task_of(kind: str, config: Stage) -> Task:
    """The task of a resolved config, whose open settings are decided here; reads every input for its digest."""
    found = suited(kind, config)
    config = found.config
    inputs = parents(kind, config)
    key = stage_key(kind, config, inputs)
    return Task(
        kind, config, folder(config, kind), key, inputs, sources(kind, config), bare(config, inputs), found.decided
    )


def valid_record(task: Task) -> dict[str, Any]:
    """The record of a stage that is done with this key and has all its outputs, else empty."""
    done = read_done(task.directory)
    return done if done.get("key") == task.key and not missing_outputs(task.directory, done) else {}
