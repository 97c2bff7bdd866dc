"""Checked reading of YAML, JSON and JSON Lines; each error is one sentence naming file and line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from accord.errors import UserError

_MISSING = (FileNotFoundError, NotADirectoryError)


# ------------------------------------------------------------------ JSON
def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises UserError naming the file and ending with ``remedy`` where it is missing, or not a JSON object in UTF-8.
    """
    try:
        return _json_object(path, remedy)
    except _MISSING:
        raise UserError(f"{path}: no such file; {remedy}") from None


def read_json_if_present(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file.  Raises UserError as ``read_json``."""
    try:
        return _json_object(path, remedy)
    except _MISSING:
        return None


def read_record(path: Path) -> dict[str, Any]:
    """A record that a run wrote; empty where the file is missing or incomplete."""
    try:
        return _json_object(path, "")
    except (*_MISSING, UserError):
        return {}


def _json_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON {json_kind(found)}, expected an object; {remedy}")
    return found


def json_kind(value: Any) -> str:
    """The name of a value's type in JSON."""
    kinds = {list: "array", str: "string", bool: "boolean", dict: "object", type(None): "null"}
    return kinds.get(type(value), "number")


# ------------------------------------------------------------------ JSON Lines
def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line that is not blank.

    Raises UserError, naming file and row: no such file, bad JSON, not an object, not UTF-8, no rows at all.
    """
    found = False
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                found = True
                yield number, _row(line, f"{path}, row {number}")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, expected a JSON Lines file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if not found:
        raise UserError(f"{path}: no rows; expected one JSON object per line")


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        whole = " (one object per line, not one array)" if line.lstrip().startswith("[") else ""
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}{whole}") from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: a JSON {json_kind(value)}, expected an object such as {{"prompt": …}}')
    return value


def read_appended_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that a run appends to, up to a line truncated by a kill; none where it is missing."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# ------------------------------------------------------------------ YAML
def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file and the line of every dotted key.  Raises UserError naming the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(Path(path).name, [p.name for p in Path(path).parent.glob("*.y*ml")], 1)
        raise UserError(f"{path}: no such config file" + (f"; did you mean {near[0]!r}?" if near else ".")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}).") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', error)}.") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines at the top level, found {type(values).__name__}.")
    lines: dict[str, int] = {}
    for key, line in _key_lines(node, "") if node is not None else ():
        if key in lines:
            raise UserError(
                f"{path} line {line}: the key {key!r} occurs twice (first on line {lines[key]}); remove one."
            )
        lines[key] = line
    return values, lines


def _key_lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _key_lines(value, f"{dotted}.")
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _key_lines(value, f"{prefix}{i}.")
