"""A stage kind with several typed configs: which one given values select, and which keys are then refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, Union

from pydantic import TypeAdapter

from accord.config.section import Section, known_keys, without_retired
from accord.errors import UserError

C_co = TypeVar("C_co", bound=Section, covariant=True)


@dataclass(frozen=True, slots=True)
class Choice:
    """The selected variant, and why."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Variants(Generic[C_co]):
    """Typed configs by the value of one key; the first is the default."""

    description: str
    key: str
    """The key that names the variant: ``model.policy``."""
    classes: Mapping[str, type[C_co]]
    signs: Mapping[str, str]
    """Keys that select a variant where ``key`` is absent."""
    former: Mapping[str, str] = field(default_factory=dict)
    """Earlier names of variants, which work with a note."""
    implied: Callable[[Mapping[str, Any]], Choice | None] = lambda values: None
    """The variant that several keys together select where ``key`` is absent."""

    def __call__(self, **values: Any) -> C_co:
        """The config with these values, as from a class.  Raises UserError or pydantic's ValidationError."""
        cls, resolved = self.resolve(values, {}, "the settings given")
        return cls(**resolved)

    def model_json_schema(self) -> dict[str, Any]:
        """JSON Schema that accepts any of the variants."""
        anything: Any = Union[tuple(self.classes.values())]  # noqa: UP007 (known at run time only)
        return {"description": self.description, **TypeAdapter(anything).json_schema()}

    def condition(self, name: str) -> str:
        """When this variant is selected, in words."""
        keys = [key for key, variant in self.signs.items() if variant == name]
        return f"selected by {' or '.join(keys)}" if keys else "the default"

    def resolve(
        self, values: Mapping[str, Any], sources: Mapping[str, str], otherwise: str
    ) -> tuple[type[C_co], dict[str, Any]]:
        """The class that ``values`` select, and the values with the variant's current name.

        ``sources`` holds where each dotted key was written, ``otherwise`` what to name for the rest.  Raises UserError
        for an unknown variant, for keys that select two variants, and for keys of another variant.
        """
        renamed = self._renamed(values, sources.get(self.key, otherwise))
        choice = self._choice(renamed, sources, otherwise)
        renamed = dict(without_retired(self.classes[choice.name], renamed))
        self._refuse_other_keys(choice, renamed, sources, otherwise)
        return self.classes[choice.name], renamed

    def _renamed(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values with the current name of a renamed variant; notes the renaming on stderr."""
        old = _value(values, self.key)
        if old not in [*self.former]:
            return dict(values)
        new = self.former[old]
        print(
            f"accord: note: {where}: {self.key}={old} is now {self.key}={new}; the old name works until 0.3.",
            file=sys.stderr,
        )
        return _with(values, self.key, new)

    def _choice(self, values: Mapping[str, Any], sources: Mapping[str, str], otherwise: str) -> Choice:
        named = _value(values, self.key)
        if named is not None:
            where = sources.get(self.key, otherwise)
            if named not in [*self.classes]:
                *some, last = map(repr, self.classes)
                raise UserError(f"{where}: {self.key}: expected {', '.join(some)} or {last}, found {named!r}.")
            return Choice(named)
        if (implied := self.implied(values)) is not None:
            return implied
        found = {name: key for key, name in self.signs.items() if _value(values, key) not in (None, "")}
        if len(found) > 1:
            (one, first), (other, second) = list(found.items())[:2]
            raise UserError(
                f"{sources.get(first, otherwise)}: {first} is a setting of {self.key}={one}, and {second} is one of"
                f" {self.key}={other}; leave one of them out."
            )
        for name, key in found.items():
            return Choice(name, f" because it has {key}")
        return Choice(next(iter(self.classes)), ", the default")

    def _refuse_other_keys(
        self, choice: Choice, values: Mapping[str, Any], sources: Mapping[str, str], otherwise: str
    ) -> None:
        """Raises UserError where ``values`` holds settings that only other variants have."""
        known = {name: set(known_keys(cls)) for name, cls in self.classes.items()}
        own = known.pop(choice.name)
        owned = {name: [key for key in _leaves(values) if key in keys - own] for name, keys in known.items()}
        most = max(map(len, owned.values()))
        if not most:
            return
        names = [name for name, keys in owned.items() if len(keys) == most]
        *some, last = owned[names[0]]
        words = f"{', '.join(some)} and {last} are settings" if some else f"{last} is a setting"
        raise UserError(
            f"{sources.get((*some, last)[0], otherwise)}: {words} of {self.key}={' and '.join(names)}; this config is"
            f" {self.key}={choice.name}{choice.reason}."
        )


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _with(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy in which a dotted key has another value."""
    head, _, rest = key.partition(".")
    return {**values, head: _with(values[head], rest, value) if rest else value}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
