"""The settings part of ``--help``: shared settings first, then those of each variant."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from accord.config.section import Section
from accord.config.variants import Variants


def settings_help(settings: type[Section] | Variants[Section]) -> list[str]:
    """Lines with a description and every setting, its default and its meaning."""
    if not isinstance(settings, Variants):
        return _lines(settings.__doc__ or "", "settings:", list(_entries(settings)))
    entries = {name: list(_entries(cls)) for name, cls in settings.classes.items()}
    first, *others = entries.values()
    shared = [entry for entry in first if all(entry in other for other in others)]
    lines = _lines(settings.description, "settings:", shared)
    for name, cls in settings.classes.items():
        head = f"settings of {settings.key}={name}, {settings.condition(name)}:"
        lines += ["", *_lines(cls.__doc__ or "", head, [entry for entry in entries[name] if entry not in shared])]
    return lines


def _lines(description: str, head: str, entries: list[str]) -> list[str]:
    return [description, "", head, *(line for entry in entries for line in entry.splitlines())]


def _entries(cls: type[BaseModel]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        inner, default = field.annotation, field.get_default(call_default_factory=True)
        if isinstance(inner, type) and issubclass(inner, BaseModel):  # with this stage's defaults
            for key, setting in inner.model_fields.items():
                yield _entry(f"{name}.{key}", getattr(default, key), setting.description)
        else:
            yield _entry(name, default, field.description)


def _entry(key: str, default: Any, description: str | None) -> str:
    """Key and default, and beside them the meaning, wrapped."""
    shown = "''" if default == "" else "null" if default is None else str(default)
    head = f"  {key + '=' + shown:<44} "
    return textwrap.fill(description or "", 120, initial_indent=head, subsequent_indent=" " * 47) or head.rstrip()
