"""Why a stage runs: what differs from its last record, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accord.pipeline.records import BEGUN, missing_outputs, read_done, read_record
from accord.pipeline.task import Task

NEVER = "there is no earlier run"
_ABSENT = object()


def differences(task: Task, forced: bool = False) -> list[str]:
    """What makes a task run though a record of it is there; nothing, where it need not.

    Compared with done.json, or with begun.json where the stage did not come to its end.
    """
    done = read_done(task.directory)
    record = done or read_record(task.directory / BEGUN)
    if not record:
        return [NEVER]
    found = list(_changes(record, task.record()))
    found += [f"its output {name} is gone" for name in missing_outputs(task.directory, done)]
    if not done and not found:
        return ["it did not come to its end"]
    return found or (["it was asked for anew"] if forced else [])


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old.get("key") == new["key"]:
        return
    if "settings" not in old:
        yield "its record is of an earlier accord, which did not keep the settings"
        return
    if old["kind"] != new["kind"]:
        yield f"kind: {old['kind']} -> {new['kind']}"
        return
    if old["version"] != new["version"]:
        yield f"the version of the stage {new['kind']!r} changed: {old['version']} -> {new['version']}"
    before, now = dict(_flat(old["settings"])), dict(_flat(new["settings"]))
    inputs = {*old["inputs"], *new["inputs"]}
    for key in dict.fromkeys([*before, *now]):
        if key not in inputs and before.get(key, _ABSENT) != now.get(key, _ABSENT):
            yield f"setting {key}: {_shown(before.get(key, _ABSENT))} -> {_shown(now.get(key, _ABSENT))}"
    for key in dict.fromkeys([*old["inputs"], *new["inputs"]]):
        was, is_now = old["inputs"].get(key), new["inputs"].get(key)
        if was == is_now:
            continue
        if was is None:
            yield f"input {key} is new ({new['sources'].get(key, is_now)})"
        elif is_now is None:
            yield f"input {key} is no longer taken (it was {old['sources'].get(key, was)})"
        else:
            yield f"input {key} changed ({_where(old['sources'].get(key, was), new['sources'].get(key, is_now))})"


def _where(before: str, now: str) -> str:
    return f"another content of {now}" if before == now else f"{before} -> {now}"


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
