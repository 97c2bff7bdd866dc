"""YAML and dotted overrides to a typed, frozen config; every mistake is one sentence that names file, line and key.

No torch here, nor in anything this imports: a wrong key must come back in well under a second.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound="Section")


class UserError(Exception):
    """A mistake of the user's: one sentence with what, where and the mend.  The command line exits with 2."""


class Section(BaseModel):
    """A part of a config: frozen, no unknown keys; the text under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change results: left out of the fingerprint."""

    def fingerprint(self) -> str:
        """A digest of the settings that change results, 16 hexadecimal digits."""
        return digest(_without_runtime(self))


def digest(value: object) -> str:
    """16 hexadecimal digits of a JSON-able value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _without_runtime(section: Section) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in section.runtime:
            result[name] = (
                _without_runtime(value) if isinstance(value, Section) else section.model_dump(mode="json")[name]
            )
    return result


def load(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """The config of class ``cls`` from a YAML file (None: all defaults) and ``a.b=value`` overrides, later ones winning.

    Raises UserError for a missing or malformed file, an unknown key (with the nearest known one) or a bad value.
    """
    values, lines = read_yaml(path) if path is not None else ({}, {})
    sources = {key: f"{path} line {line}" for key, line in lines.items()}
    for override in overrides:
        key, value = parse_override(override)
        _set(values, key, value)
        sources[key] = f"override {override!r}"
    return build(cls, values, sources, default_source=str(path) if path is not None else "the config")


def build(cls: type[C], values: Mapping[str, Any], sources: Mapping[str, str], default_source: str) -> C:
    """Validates plain values; ``sources`` says for each dotted key where it was written, for the message."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(cls, e, sources, default_source) for e in error.errors()[:5])) from None


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
                f"{path} line {line}: the key {key!r} stands twice (first on line {lines[key]}); remove one."
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


def parse_override(text: str) -> tuple[str, Any]:
    """``training.learning_rate=3e-5`` → key and value (read as YAML).  Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r}: write it as key=value, e.g. training.learning_rate=3e-5.")
    try:
        return key.strip().lstrip("-"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not valid YAML ({error}).") from None


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        inner = values.get(part)
        values[part] = dict(inner) if isinstance(inner, dict) else {}
        values = values[part]
    values[last] = value


def _explain(cls: type[Section], error: Any, sources: Mapping[str, str], default_source: str) -> str:
    path = tuple(str(p) for p in error["loc"] if not str(p).startswith(("function-", "list[", "Section")))
    key = ".".join(path)
    where = next((sources[k] for k in (key, ".".join(path[:-1])) if k in sources), default_source)
    if error["type"] == "extra_forbidden":
        known = list(known_keys(cls))
        siblings = [k for k in known if k.rpartition(".")[0] == ".".join(path[:-1])]
        near = difflib.get_close_matches(key, siblings, 1, 0.6) or difflib.get_close_matches(key, known, 1, 0.7)
        near = near or [k for k in known if k.rpartition(".")[2] == path[-1]][:1]
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(siblings) or 'none'}."
        return f"{where}: unknown key {key!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = "" if error["type"] == "value_error" else "expected "
    found = "" if error["type"] in ("missing", "value_error") else f", found {error['input']!r}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is needed and absent."
    return f"{where}: {key or 'config'}: {expected}{message}{found}."


def known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config class has."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from known_keys(inner, f"{prefix}{name}.")


def to_yaml(config: Section) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
