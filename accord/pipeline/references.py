"""Resolves names in configs to paths: ``sft`` to a stage's model, ``demo`` to the small world's file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.config.common import Stage
from accord.config.data import PACKAGED
from accord.config.functions import is_function, require_module
from accord.data.files.arrow import is_arrow_folder
from accord.data.files.hub import is_hub_name, pinned
from accord.errors import UserError
from accord.io.installation import located
from accord.models.hub import is_hub_model, model_files, pinned_model
from accord.stage_kinds.kind import Reference
from accord.stage_kinds.table import STAGE_KINDS

SMALL = ("mamba", "transformer")


def references(kind: str, config: Stage) -> Iterator[tuple[Reference, str]]:
    """The references in a config and their values, without empty ones."""
    values = config.model_dump()
    for reference in STAGE_KINDS[kind].references:
        if reference.unless and value_at(values, reference.unless):
            continue
        if reference.only_with and not value_at(values, reference.only_with):
            continue
        for key, value in _items(values, reference.key):
            if value or key != reference.key:
                yield replace(reference, key=key), str(value)


def _items(values: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """A key and its value; for a key with ``*`` those of every item."""
    head, star, rest = key.partition(".*")
    if not star:
        yield key, value_at(values, key)
        return
    found = value_at(values, head)
    for name, item in found.items() if isinstance(found, Mapping) else enumerate(found):
        yield f"{head}.{name}{rest}", value_at(item, rest[1:]) if rest else item


def value_at(values: Any, key: str) -> Any:
    """The value at a dotted key; empty where this variant of a config has no such key."""
    for part in key.split("."):
        values = values.get(part, "") if isinstance(values, Mapping) else ""
    return values


def resolve(kind: str, config: Stage, folder_of: Callable[[str], Path | None]) -> Stage:
    """The config with every reference replaced by a path, except ``module:function`` and names of the hub, which get their
    commit.

    A reference that is empty and has a file beside another (``Reference.beside``) is filled in.  ``folder_of`` returns a
    stage's folder, or None for other names.
    """
    config = with_files_beside(kind, config, folder_of)
    config = _mapped(kind, config, lambda reference, value: _path(reference, value, folder_of(value), config.out))
    return _with_sources(kind, config, pinned_model)


def _with_sources(kind: str, config: Stage, change: Callable[[str], str]) -> Stage:
    """The config with what names a model of the hub among ``StageKind.files`` changed."""
    names = {key: str(value_at(config.model_dump(), key)) for key in STAGE_KINDS[kind].files}
    found = {key: _pinned(key, name, change) for key, name in names.items() if is_source_of_hub(name)}
    return with_values(config, found) if found else config


def is_source_of_hub(name: str) -> bool:
    """Whether a setting that names a file or else a model of the hub, perhaps by one word (``gpt2``), names the latter."""
    return bool(name) and name not in PACKAGED and not name.endswith(".gguf") and not Path(name).exists()


def fetch(kind: str, config: Stage, say: Callable[[str], None]) -> Stage:
    """A resolved config with the folder of each model of the hub, downloaded where it is not in the cache.

    Raises UserError naming the setting.
    """

    def folder_of(name: str) -> str:
        return str(model_files(name, say))

    named = {r.key: value for r, value in references(kind, config) if r.sort in ("model", "reward")}
    found = {key: _pinned(key, value, folder_of) for key, value in named.items() if is_hub_model(value)}
    return _with_sources(kind, with_values(config, found) if found else config, folder_of)


def with_files_beside(kind: str, config: Stage, folder_of: Callable[[str], Path | None]) -> Stage:
    """The config with empty references naming what another names, where that stage or folder has a file for them."""
    values, filled = config.model_dump(), False
    for reference in STAGE_KINDS[kind].references:
        other = value_at(values, reference.beside) if reference.beside else ""
        if not other or value_at(values, reference.key) or value_at(values, reference.unless):
            continue
        if ((folder_of(other) or Path(other)) / f"{reference.sort}.jsonl").is_file():
            _put(values, reference.key, other)
            filled = True
    return type(config).model_validate(values) if filled else config


def renamed(kind: str, config: Stage, name_of: Callable[[str, str], str]) -> Stage:
    """The config with every reference replaced by ``name_of(key, value)``."""
    return _mapped(kind, config, lambda reference, value: name_of(reference.key, value))


def with_values(config: Stage, given: Mapping[str, str]) -> Stage:
    """The config with other values at these dotted keys."""
    values = config.model_dump()
    for key, value in given.items():
        _put(values, key, value)
    return type(config).model_validate(values)


def _mapped(kind: str, config: Stage, change: Callable[[Reference, str], str]) -> Stage:
    values = config.model_dump()
    for reference, value in references(kind, config):
        _put(values, reference.key, change(reference, value))
    return type(config).model_validate(values)


def _path(reference: Reference, value: str, folder: Path | None, out: str) -> str:
    sort = reference.sort
    if is_function(value):
        return value
    if (
        folder is None
        and "@" in value
        and "/" not in value
        and sort in ("model", "reward")
        and not Path(value).exists()
    ):
        return _registered(reference.key, value, out)
    if folder is not None:
        return str(folder / "model") if sort in ("model", "reward") else str(folder / f"{sort}.jsonl")
    source = located(value)
    if sort in ("model", "reward"):
        if is_hub_model(value):
            return _pinned(reference.key, value, pinned_model)
        return str(source / "model") if (source / "model" / "config.json").exists() else value
    value = value if source == Path(value) else str(source)
    if is_hub_name(value):
        return _pinned(reference.key, value, pinned)
    if is_arrow_folder(source):
        return value
    return str(source / f"{sort}.jsonl") if source.is_dir() else value


def _pinned(key: str, name: str, pin: Callable[[str], str]) -> str:
    """A name of the hub with its commit, which is then part of the stage's key.  Raises UserError naming the setting."""
    try:
        return pin(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _registered(key: str, name: str, out: str) -> str:
    """The folder of ``NAME@ALIAS`` for a stage of the run ``out``.  Raises UserError where it is not in the registry."""
    from accord.registry.store import default_out, open_store

    try:
        return str(open_store(None, out, default_out()).find(name).folder)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def require(config: Stage, kind: str, known: Collection[str], made: Collection[str] = (), where: str = "") -> None:
    """Raises UserError for a name that is not in ``made`` and not an existing path, with the closest of ``known``.

    Empty files and functions of missing modules are refused here too, before stages run for them.
    """
    config = with_files_beside(kind, config, lambda name: None)
    for key in STAGE_KINDS[kind].functions:
        if name := str(value_at(config.model_dump(), key)):
            require_module(name, f"{where}{key}")
    try:
        paths = [value for _, value in references(kind, resolve(kind, config, lambda name: None))]
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    for (reference, name), value in zip(references(kind, config), paths, strict=True):
        if name in made:
            continue
        if reference.sort not in ("model", "reward") and Path(value).is_file() and Path(value).stat().st_size == 0:
            raise UserError(f"{where}{reference.key}: {value} is empty; give a file with at least one row.")
        if is_function(value) and not Path(value).exists():
            require_module(value, f"{where}{reference.key}")
        of_hub = is_hub_model if reference.sort in ("model", "reward") else is_hub_name
        if is_function(value) or "://" in value or Path(value).exists() or of_hub(value):  # feedback:// names people
            continue
        near = difflib.get_close_matches(value, [*known, *SMALL], 1)
        stages = f"a stage ({', '.join(dict.fromkeys(known))}), " if known else ""
        hint = f"did you mean {near[0]!r}?" if near else f"name {stages}a folder or a file."
        if reference.sort == "reward" and not near:
            hint = f"{hint[:-1]}, or a function as module:function."
        if value in STAGE_KINDS and value not in known:
            hint = f"put a stage {value!r} before this one, or name a folder or a file."
        if value in SMALL:
            hint = "put a stage of kind 'base' before this one and name that."
        raise UserError(f"{where}{reference.key}: {value!r} does not exist; {hint}")


def _put(values: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    inner: Any = values
    for part in parents:
        if isinstance(inner[int(part) if part.isdigit() else part], tuple):
            inner[part] = list(inner[part])
        inner = inner[int(part) if part.isdigit() else part]
    inner[last] = value
