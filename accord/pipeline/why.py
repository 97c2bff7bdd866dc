"""Why a stage runs: the differences from its last record, as sentences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from accord.pipeline.records import missing_outputs, read_begun, read_done
from accord.pipeline.task import Task

NEVER = "it has not run yet"
MOST_SHOWN = 3
"""Maximum removed settings to list one by one."""
_ABSENT = object()


def differences(task: Task, forced: bool = False) -> list[str]:
    """The reasons why a task would run; empty where it is up to date.

    Compares with done.json, or with begun.json for an unfinished stage.
    """
    done = read_done(task.directory)
    record = done or read_begun(task.directory)
    if not record:
        return [NEVER]
    found = list(_changes(record, task.record()))
    found += [f"its output {name} is missing" for name in missing_outputs(task.directory, done)]
    if not done and not found:
        return ["it has not finished"]
    return found or (["it was forced"] if forced else [])


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old.get("key") == new["key"]:
        return
    if "settings" not in old:
        yield "its record is from an earlier version of accord, without settings"
        return
    if old["kind"] != new["kind"]:
        yield f"kind: {old['kind']} -> {new['kind']}"
        return
    if old.get("version") != new["version"]:
        yield f"the version of the stage {new['kind']!r} changed: {old.get('version')} -> {new['version']}"
    inputs = {*old["inputs"], *new["inputs"]}
    yield from _setting_changes(*(_settings(record, inputs) for record in (old, new)))
    for key in dict.fromkeys([*old["inputs"], *new["inputs"]]):
        was, is_now = old["inputs"].get(key), new["inputs"].get(key)
        if was == is_now:
            continue
        if was is None:
            yield f"input {key} is new ({new['sources'].get(key, is_now)})"
        elif is_now is None:
            yield f"input {key} was removed (it was {old.get('sources', {}).get(key, was)})"
        else:
            yield f"input {key} changed ({_where(old.get('sources', {}).get(key, was), new['sources'].get(key, is_now))})"


def _settings(record: Mapping[str, Any], inputs: Collection[str]) -> dict[str, Any]:
    """Settings by dotted key, without inputs."""
    return {key: value for key, value in _flat(record["settings"]) if key not in inputs}


def _setting_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    removed = [key for key in before if key not in now]
    if len(removed) > MOST_SHOWN:
        yield f"{len(removed)} settings were removed, among them {', '.join(removed[:MOST_SHOWN])}"
        before = {key: value for key, value in before.items() if key in now}
    for key in dict.fromkeys([*before, *now]):
        was, is_now = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if was != is_now:
            yield f"setting {key}: {_shown(was)} -> {_shown(is_now)}"


def _where(before: str, now: str) -> str:
    return f"new content of {now}" if before == now else f"{before} -> {now}"


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested values; an empty mapping or list counts as a value."""
    inner = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    found = False
    for key, value in inner:
        found = True
        yield from _flat(value, f"{prefix}{key}.")
    if not found and prefix:
        yield prefix[:-1], values


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value) if isinstance(value, str) else str(value)
