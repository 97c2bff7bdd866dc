"""YAML and dotted overrides to a typed, frozen config; each error is one sentence naming file, line and key.

Neither this module nor its imports load torch, so that a wrong key is reported in well under a second.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from accord.config.section import Section, known_keys, section_of
from accord.config.variants import Variants
from accord.errors import UserError
from accord.io.readers import MAX_DEPTH, parse_yaml, read_yaml, shorten

C = TypeVar("C", bound="Section")

_EXPECTED = {
    "int_parsing": "a whole number, without point and exponent",
    "int_parsing_size": "a whole number that is not as long",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""What was expected, where pydantic's own words name Python's types."""


def load(settings: type[C] | Variants[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """A config from a YAML file (None: all defaults) and ``a.b=value`` overrides, of which the last wins.

    ``settings`` is the config's class, or variants between which the values decide.
    Raises UserError for a missing or malformed file, an unknown key (with the nearest known one) or a bad value.
    """
    values, lines = read_yaml(path) if path is not None else ({}, {})
    if path is not None and not values:
        print(f"accord: note: {path} has no settings; all have their defaults.", file=sys.stderr)
    sources = {key: f"{path} line {line}" for key, line in lines.items()}
    for override in overrides:
        key, value = parse_override(override)
        sources[key] = f"override {shorten(override)!r}"
        put(values, key, value, sources[key])
    return build(settings, values, sources, default_source=str(path) if path is not None else "the config")


def build(
    settings: type[C] | Variants[C], values: Mapping[str, Any], sources: Mapping[str, str], default_source: str
) -> C:
    """Validates plain values; ``sources`` holds, for error messages, where each dotted key was written."""
    if isinstance(settings, Variants):
        settings, values = settings.resolve(values, sources, default_source)
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        inner = {
            e["loc"][:n] for e in errors for n in range(len(e["loc"]))
        }  # a list is short where its items are wrong
        explained = [_explain(settings, e, sources, default_source) for e in errors if e["loc"] not in inner]
        raise UserError("\n".join(explained[:5])) from None


def parse_override(text: str) -> tuple[str, Any]:
    """``training.learning_rate=3e-5`` → key and value (read as YAML).  Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {shorten(text)!r}: write it as key=value, e.g. training.learning_rate=3e-5.")
    where = f"override {shorten(text)!r}"
    return parse_key(key.strip().lstrip("-"), where), parse_yaml(value, where)


def parse_key(key: str, where: str) -> str:
    """A dotted key.  Raises UserError for one that no setting has: too deep, or with characters that no terminal shows."""
    if key.count(".") >= MAX_DEPTH or not key.isprintable():
        raise UserError(f"{where}: not a setting's dotted key.")
    return key


def put(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted key, creating missing sections.  Raises UserError where a section holds a plain value."""
    *parents, last = key.split(".")
    for i, part in enumerate(parents):
        inner = values.get(part)
        if inner is not None and not isinstance(inner, Mapping):
            section = ".".join(parents[: i + 1])
            raise UserError(f"{where}: {key!r} cannot be set: {section!r} is the value {_shown(inner)}, not a section.")
        values[part] = dict(inner or {})
        values = values[part]
    values[last] = value


def _explain(cls: type[Section], error: Any, sources: Mapping[str, str], default_source: str) -> str:
    path = tuple(str(p) for p in error["loc"] if not str(p).startswith(("function-", "list[", "[key]", "Section")))
    key = ".".join(path)
    below = [k for k in sources if k.startswith(f"{key}.")]
    above = [".".join(path[:i]) for i in range(len(path) - 1, 0, -1)]
    where = next((sources[k] for k in (key, *below, *above) if k in sources), default_source)
    if key == "stages" and error["type"] == "extra_forbidden":
        file = where.rpartition(" line ")[0] or "FILE"
        return f"{where}: 'stages' makes this a pipeline, not the config of one stage; type accord run {file}."
    if error["type"] == "extra_forbidden" and path[0] == "parallel" and len(path) == 1:
        several = "base, sft, reward, dpo and ppo on language models can use several"
        return f"{where}: this stage runs in one process, so leave parallel.* out; {several}."
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {shorten(key)!r}; {_hint(cls, path)}"
    if error["type"] == "model_type" and where.startswith("override "):
        example = nearest_key(key, cls)
        return f"{where}: {key!r} is a section; set one of its keys, such as {example}."
    if error["type"] in ("model_type", "dict_type"):
        return f"{where}: {key}: expected 'key: value' lines below it, found {_shown(error['input'])}."
    message = _EXPECTED.get(error["type"], error["msg"].removeprefix("Value error, ").removeprefix("Input should be "))
    if error["type"] == "too_short":
        message = f"a list of at least {error['ctx']['min_length']}"
    expected = "" if error["type"] == "value_error" else "expected "
    found = "" if error["type"] in ("missing", "value_error") else f", found {_shown(error['input'])}"
    if error["type"] == "missing":
        return f"{where}: the required key {key!r} is missing."
    if error["input"] is None and where.startswith("override "):
        none = (
            f"; for an empty one type '{key}=\"\"' with both kinds of quotes" if error["type"] == "string_type" else ""
        )
        return f"{where}: {key}: there is no value after '='; expected {message}{none}."
    subject = f"{where}: {key}" if key else where
    return f"{subject}: {expected}{message}{found}."


def _shown(value: Any) -> str:
    """A value in a message: shortened where it is long."""
    if value is None:
        return "nothing"
    return f"{shorten(value)!r}" if isinstance(value, str) else shorten(value)


def _hint(cls: type[BaseModel], path: tuple[str, ...]) -> str:
    """The same name in another section, else the closest name in this section, else the closest anywhere."""
    section: type[BaseModel] | None = cls
    for part in path[:-1]:  # the number or name of an item within a tuple or dict is not a field: the section stays
        if section is not None and part in section.model_fields:
            section = section_of(section.model_fields[part].annotation)
    fields = section.model_fields.items() if section else ()
    here = [".".join((*path[:-1], field.alias or name)) for name, field in fields]
    last = path[-1]
    anywhere = {k.rpartition(".")[2]: k for k in reversed(list(known_keys(cls)))}
    siblings = {k.rpartition(".")[2]: k for k in here}
    near = [anywhere[last]] if last in anywhere else []
    near = near or [siblings[n] for n in difflib.get_close_matches(last, siblings, 1, 0.6)]
    near = near or [anywhere[n] for n in difflib.get_close_matches(last, anywhere, 1, 0.75)]
    near = near or [*filter(None, [nearest_key(last, cls)])]
    return f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(here) or 'none'}."


def nearest_key(name: str, cls: type[BaseModel]) -> str:
    """The setting that a name in another form means: its last part, misspelled, its initials or one of its words; for a
    section the first setting in it.

    Empty where there is none.  ``lr`` and ``learning_rat`` mean training.learning_rate, ``epochs`` training.num_epochs.
    """
    sections = {key.rpartition(".")[0] for key in known_keys(cls)}
    keys = [key for key in known_keys(cls) if "*" not in key and key not in sections]
    by_last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    last = name.rpartition(".")[2]
    if name in sections:
        return next((key for key in keys if key.startswith(f"{name}.")), "")
    near = [last] if last in by_last else difflib.get_close_matches(last, by_last, 1, 0.75)
    near = near or [n for n in by_last if len(last) > 1 and last == "".join(word[0] for word in n.split("_") if word)]
    near = near or [n for n in by_last if len(last) > 3 and last in n.split("_")]
    return by_last[near[0]] if near else ""


def to_yaml(config: Section) -> str:
    """The resolved config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
