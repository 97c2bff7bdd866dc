"""A typed section of a config, its keys and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A frozen section of a config without unknown keys; the text under a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    runtime: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change results: left out of the fingerprint."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields added since stages were first made: left out of the fingerprint while they hold their defaults."""
    retired: ClassVar[Mapping[str, Any]] = {}
    """Dotted keys that earlier versions accepted and never used, with their defaults: a file may still hold these."""

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A section given in part keeps the other defaults of *this field*, not those of its class."""
        if not isinstance(values, Mapping):
            return values
        values = without_retired(cls, values)
        defaults = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
        return {key: _filled(defaults.get(key), value) for key, value in values.items()}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """A field that a subclass gives another default inherits its documentation."""
        for name, field in cls.model_fields.items():
            above = [base.model_fields for base in cls.__mro__[1:] if issubclass(base, BaseModel)]
            known = (fields[name].description for fields in above if name in fields)
            field.description = field.description or next((text for text in known if text), None)

    def omitted(self) -> frozenset[str]:
        """The fields that the fingerprint leaves out."""
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in self.later}
        unset = {name for name, default in defaults.items() if _plain(getattr(self, name)) == _plain(default)}
        return self.runtime | unset

    def fingerprint(self) -> str:
        """A digest of the settings that change results, 16 hexadecimal digits."""
        return digest(_without_runtime(self))


def without_retired(cls: type[Section], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` without the retired keys of ``cls`` that hold their defaults."""
    for key, default in cls.retired.items():
        values = _without(values, key, default)
    return values


def _without(values: Mapping[str, Any], key: str, default: object) -> Mapping[str, Any]:
    head, _, rest = key.partition(".")
    if not rest:
        return {name: value for name, value in values.items() if name != head or value != default}
    inner = values.get(head)
    return {**values, head: _without(inner, rest, default)} if isinstance(inner, Mapping) else values


def _filled(default: object, value: Any) -> Any:
    if not (isinstance(default, Section) and isinstance(value, Mapping)):
        return value
    known = {name: getattr(default, name) for name in type(default).model_fields}
    return {**known, **{key: _filled(known.get(key), inner) for key, inner in value.items()}}


def digest(value: object) -> str:
    """16 hexadecimal digits of a JSON-able value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    return _without_runtime(value) if isinstance(value, Section) else value


def _without_runtime(section: Section) -> dict[str, Any]:
    result: dict[str, Any] = {}
    omitted = section.omitted()
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in omitted:
            result[name] = (
                _without_runtime(value) if isinstance(value, Section) else section.model_dump(mode="json")[name]
            )
    return result


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a tuple or mapping; None for a plain value."""
    for inner in (annotation, *get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def known_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a config class has; ``*`` stands for an item's name or number."""
    for attribute, field in cls.model_fields.items():
        name = field.alias or attribute
        yield f"{prefix}{name}"
        inner = section_of(field.annotation)
        if inner is not None:
            yield from known_keys(inner, f"{prefix}{name}." if inner is field.annotation else f"{prefix}{name}.*.")
