"""YAML and dotted overrides to a typed, frozen config; every mistake is one sentence that names file, line and key.

No torch here, nor in anything this imports: a wrong key must come back in well under a second.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from accord.errors import UserError
from accord.io.readers import read_yaml

C = TypeVar("C", bound="Section")


class Section(BaseModel):
    """A part of a config: frozen, no unknown keys; the text under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change results: left out of the fingerprint."""

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the rest of the default it has *here*, not that of its class."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
        return {key: _filled(defaults.get(key), value) for key, value in values.items()}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """A field that a subclass only gives another default keeps the documentation it had."""
        for name, field in cls.model_fields.items():
            above = [base.model_fields for base in cls.__mro__[1:] if issubclass(base, BaseModel)]
            known = (fields[name].description for fields in above if name in fields)
            field.description = field.description or next((text for text in known if text), None)

    def fingerprint(self) -> str:
        """A digest of the settings that change results, 16 hexadecimal digits."""
        return digest(_without_runtime(self))


def _filled(default: object, value: Any) -> Any:
    if not (isinstance(default, Section) and isinstance(value, Mapping)):
        return value
    known = {name: getattr(default, name) for name in type(default).model_fields}
    return {**known, **{key: _filled(known.get(key), inner) for key, inner in value.items()}}


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
        sources[key] = f"override {override!r}"
        put(values, key, value, sources[key])
    return build(cls, values, sources, default_source=str(path) if path is not None else "the config")


def build(cls: type[C], values: Mapping[str, Any], sources: Mapping[str, str], default_source: str) -> C:
    """Validates plain values; ``sources`` says for each dotted key where it was written, for the message."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(cls, e, sources, default_source) for e in error.errors()[:5])) from None


def parse_override(text: str) -> tuple[str, Any]:
    """``training.learning_rate=3e-5`` → key and value (read as YAML).  Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r}: write it as key=value, e.g. training.learning_rate=3e-5.")
    try:
        return key.strip().lstrip("-"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", error)
        raise UserError(f"override {text!r}: the value is not valid YAML: {problem}.") from None


def put(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted key, making sections on the way.  Raises UserError where one of them holds a plain value."""
    *parents, last = key.split(".")
    for i, part in enumerate(parents):
        inner = values.get(part)
        if inner is not None and not isinstance(inner, Mapping):
            section = ".".join(parents[: i + 1])
            raise UserError(f"{where}: {key!r} cannot be set: {section!r} is {inner!r}, a value and no section.")
        values[part] = dict(inner or {})
        values = values[part]
    values[last] = value


def _explain(cls: type[Section], error: Any, sources: Mapping[str, str], default_source: str) -> str:
    path = tuple(str(p) for p in error["loc"] if not str(p).startswith(("function-", "list[", "Section")))
    key = ".".join(path)
    below = [k for k in sources if k.startswith(f"{key}.")]
    above = [".".join(path[:i]) for i in range(len(path) - 1, 0, -1)]
    where = next((sources[k] for k in (key, *below, *above) if k in sources), default_source)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; {_hint(cls, path)}"
    if error["type"] in ("model_type", "dict_type"):
        found = "nothing" if error["input"] is None else repr(error["input"])
        return f"{where}: {key}: expected 'key: value' lines below it, found {found}."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = "" if error["type"] == "value_error" else "expected "
    found = "" if error["type"] in ("missing", "value_error") else f", found {error['input']!r}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is needed and absent."
    return f"{where}: {key or 'config'}: {expected}{message}{found}."


def _hint(cls: type[BaseModel], path: tuple[str, ...]) -> str:
    """The same name in another place, else the nearest name in this place, else the nearest one anywhere."""
    section: type[BaseModel] | None = cls
    for part in path[:-1]:  # the number or name of an item within a tuple or dict is no field: the section stays
        if section is not None and part in section.model_fields:
            section = _inner(section.model_fields[part].annotation)
    fields = section.model_fields.items() if section else ()
    here = [".".join((*path[:-1], field.alias or name)) for name, field in fields]
    last = path[-1]
    anywhere = {k.rpartition(".")[2]: k for k in reversed(list(known_keys(cls)))}
    siblings = {k.rpartition(".")[2]: k for k in here}
    near = [anywhere[last]] if last in anywhere else []
    near = near or [siblings[n] for n in difflib.get_close_matches(last, siblings, 1, 0.6)]
    near = near or [anywhere[n] for n in difflib.get_close_matches(last, anywhere, 1, 0.75)]
    return f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(here) or 'none'}."


def _inner(annotation: Any) -> type[BaseModel] | None:
    for inner in (annotation, *get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config class has; ``*`` stands for an item's name or number."""
    for attribute, field in cls.model_fields.items():
        name = field.alias or attribute
        yield f"{prefix}{name}"
        inner = _inner(field.annotation)
        if inner is not None:
            yield from known_keys(inner, f"{prefix}{name}." if inner is field.annotation else f"{prefix}{name}.*.")


def to_yaml(config: Section) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """``module:function`` as an object; modules in the working directory are found.  Raises UserError with the key."""
    module, colon, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: {name!r} cannot be imported ({error}).") from None
    if not callable(found):
        raise UserError(f"{key}: {name!r} is not module:function.")
    return found  # type: ignore[no-any-return]
