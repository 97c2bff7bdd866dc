"""Names in configs become paths: ``sft`` is a stage's model, ``demo`` the small world's file, and a path itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accord.config.settings import Stage
from accord.errors import UserError

Sort = Literal["model", "reward", "base", "sft", "preferences", "heldout_preferences", "prompts", "heldout_prompts"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A config field that names something made elsewhere."""

    key: str
    sort: Sort


FIELDS: dict[str, tuple[Reference, ...]] = {
    "demo": (),
    "pretrained": (),
    "base": (Reference("data.train", "base"),),
    "sft": (Reference("model.base_model", "model"), Reference("data.train", "sft")),
    "pairs": (Reference("model.base_model", "model"), Reference("prompts", "prompts")),
    "reward": (
        Reference("model.base_model", "model"),
        Reference("data.train", "preferences"),
        Reference("data.heldout", "heldout_preferences"),
    ),
    "dpo": (
        Reference("model.base_model", "model"),
        Reference("data.train", "preferences"),
        Reference("data.heldout", "heldout_preferences"),
    ),
    "ppo": (
        Reference("model.base_model", "model"),
        Reference("reference", "model"),
        Reference("reward.source", "reward"),
        Reference("prompts", "prompts"),
    ),
    "compare": (
        Reference("reference", "model"),
        Reference("base", "model"),
        Reference("reward_model", "reward"),
        Reference("pairs", "heldout_preferences"),
        Reference("prompts", "heldout_prompts"),
    ),
    "fuse": (Reference("base", "model"), Reference("calibrate", "preferences")),
}
SMALL = ("mamba", "transformer")


def references(kind: str, config: Stage) -> Iterator[tuple[Reference, str]]:
    """The fields of a config that name something, with their values; empty ones are left out."""
    values = config.model_dump()
    if kind == "ppo" and values["model"]["policy"] == "vector":
        return
    for reference in FIELDS[kind]:
        value = _get(values, reference.key)
        if value and not (reference.key == "reward.source" and values["reward"]["terms"]):
            if reference.key == "pairs" and kind == "compare" and not values["reward_model"]:
                continue
            yield reference, value
    for i, term in enumerate(values.get("reward", {}).get("terms", ())):
        yield Reference(f"reward.terms.{i}.source", "reward"), term["source"]
    if kind == "fuse":
        for i, source in enumerate(values["models"]):
            yield Reference(f"models.{i}.model", "model"), source["model"]
        return
    for label, value in values.get("models", {}).items():
        yield Reference(f"models.{label}", "model"), value


def resolve(kind: str, config: Stage, folder_of: Callable[[str], Path | None]) -> Stage:
    """The config with every reference replaced by a path (or left, where it is ``module:function`` or a model id).

    ``folder_of`` gives a stage's folder, or None for a name that is no stage.
    """
    return _mapped(kind, config, lambda reference, value: _path(reference, value, folder_of(value)))


def renamed(kind: str, config: Stage, name_of: Callable[[str, str], str]) -> Stage:
    """The config with every reference replaced by ``name_of(key, value)``."""
    return _mapped(kind, config, lambda reference, value: name_of(reference.key, value))


def _mapped(kind: str, config: Stage, change: Callable[[Reference, str], str]) -> Stage:
    values = config.model_dump()
    for reference, value in references(kind, config):
        _put(values, reference.key, change(reference, value))
    return type(config).model_validate(values)


def _path(reference: Reference, value: str, folder: Path | None) -> str:
    sort = reference.sort
    if is_function(value):
        return value
    if folder is None and "@" in value and sort in ("model", "reward") and not Path(value).exists():
        return _registered(reference.key, value)
    if folder is not None:
        return str(folder / "model") if sort in ("model", "reward") else str(folder / f"{sort}.jsonl")
    source = Path(value)
    if sort in ("model", "reward"):
        return str(source / "model") if (source / "model" / "config.json").exists() else value
    return str(source / f"{sort}.jsonl") if source.is_dir() else value


def _registered(key: str, name: str) -> str:
    """The folder of ``NAME@ALIAS``.  Raises UserError where the registry has none."""
    from accord.registry.store import open_store

    try:
        return str(open_store().find(name).folder)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def is_function(value: str) -> bool:
    """Whether a reward is ``module:function``."""
    return ":" in value and "/" not in value


def require(config: Stage, kind: str, known: Collection[str], made: Collection[str] = (), where: str = "") -> None:
    """Raises UserError for a name that is not in ``made`` and no path that exists, with the nearest of ``known``.

    An empty file is refused here too, before anything that takes time is made for it.
    """
    try:
        paths = [value for _, value in references(kind, resolve(kind, config, lambda name: None))]
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    for (reference, name), value in zip(references(kind, config), paths, strict=True):
        if name in made:
            continue
        if reference.sort not in ("model", "reward") and Path(value).is_file() and Path(value).stat().st_size == 0:
            raise UserError(f"{where}{reference.key}: {value} is empty; give a file with at least one row.")
        looks_like_path = reference.sort not in ("model", "reward") or "/" not in value or value.startswith((".", "/"))
        if is_function(value) or Path(value).exists() or not looks_like_path:
            continue
        near = difflib.get_close_matches(value, [*known, *SMALL], 1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"name a stage ({', '.join(dict.fromkeys(known))}), a folder or a file."
        )
        if value in SMALL:
            hint = "put a stage of kind 'base' before this one and name that."
        raise UserError(f"{where}{reference.key}: {value!r} does not exist; {hint}")


def _get(values: Mapping[str, Any], key: str) -> str:
    for part in key.split("."):
        values = values[part]
    return str(values)


def _put(values: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    inner: Any = values
    for part in parents:
        if isinstance(inner[int(part) if part.isdigit() else part], tuple):
            inner[part] = list(inner[part])
        inner = inner[int(part) if part.isdigit() else part]
    inner[last] = value
