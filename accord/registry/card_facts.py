"""A model's origin as the Hugging Face hub reads it in the metadata of a card, and the comparisons that the model is in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from accord.errors import UserError
from accord.io.digests import CARD
from accord.io.hub import COMMIT, Repository, cached_folder
from accord.io.readers import read_text
from accord.io.records import Finished, read_record
from accord.registry.family import Family

_ON_HUB = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)@(?P<commit>[0-9a-f]{40})(?::.*)?", re.ASCII)
LICENSE_KEYS = ("license", "license_name", "license_link")


def origin(family: Family) -> dict[str, object]:
    """``base_model``, ``datasets``, ``license`` and ``language``, each where it is known.

    A license and a language are those that all base models state in their own cards, which are read where they are in the
    hub's cache or in the folder that was imported; accord's small world is English.
    """
    found: dict[str, object] = {}
    models = list(_on_hub(family, "model"))
    stated = [_front_matter(cached_folder(repository) / CARD) for repository in models]
    stated += [_front_matter(Path(place) / CARD) for place in _folders(family)]
    for key in LICENSE_KEYS:
        if stated and (value := stated[0].get(key)) and all(one.get(key) == value for one in stated):
            found[key] = value
    if names := list(dict.fromkeys(repository.id for repository in models)):
        found["base_model"] = names[0] if len(names) == 1 else names
        found["base_model_relation"] = "finetune" if len(names) == 1 else "merge"
    if sets := list(dict.fromkeys(repository.id for repository in _on_hub(family, "data"))):
        found["datasets"] = sets
    languages = [one.get("language") for one in stated]
    if languages and languages[0] and all(one == languages[0] for one in languages):
        found["language"] = languages[0]
    elif not stated and any(record.kind == "demo" for record in family.values()):
        found["language"] = "en"
    return found


def _on_hub(family: Family, form: str) -> Iterator[Repository]:
    """The repositories of the hub among the ancestors, at their commits."""
    for digest, record in family.items():
        if record.form == form and (name := _ON_HUB.fullmatch(digest)) and COMMIT.fullmatch(name["commit"]):
            yield Repository(name["id"], name["commit"], "model" if form == "model" else "dataset")


def _folders(family: Family) -> Iterator[str]:
    """The folders on this machine that models were imported from."""
    for record in family.values():
        source = record.settings.get("source")
        if record.kind == "pretrained" and isinstance(source, str) and Path(source).is_dir():
            yield source


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of three dashes; nothing where there is none, or it cannot be read."""
    try:
        text = read_text(path, 2**20)
    except (OSError, UserError):
        return {}
    found = re.match(r"---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", text, re.DOTALL)
    if found is None or "&" in found[1] or "*" in found[1]:  # no aliases, which can be made to grow without bound
        return {}
    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    keys = (*LICENSE_KEYS, "language")
    return {key: values[key] for key in keys if _is_plain(values.get(key))} if isinstance(values, dict) else {}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def comparisons(digest: str, outs: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Comparisons that a model is in, of the runs in ``outs``: its label there, and their table as Markdown."""
    for out in outs:
        for path in sorted(out.glob("*/done.json")):
            try:
                done = read_record(path, Finished, "")
                table = read_text(path.with_name("results.md")).split("\n\n")[0] if done["kind"] == "compare" else ""
            except (OSError, KeyError, UserError):
                continue
            labels = [
                key.removeprefix("models.")
                for key, d in done["inputs"].items()
                if d == digest and key.startswith("models.")
            ]
            if labels and table.startswith("| model |"):
                yield labels[0], table
