"""``generation_config.json`` beside a model's weights: its settings survive training, and it lists every end token.

Other tools look there, and in ``config.json``, for the tokens that end a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accord.io.readers import read_json_if_present
from accord.io.records import GenerationFile, check
from accord.models.hf_format import read_json, write_json

NAME = "generation_config.json"
DERIVED = "_from_model_config"
"""A mark of transformers: with it, the file is ignored where it differs from ``config.json``."""
_REMEDY = "download the file again, or remove it."


def read_generation(folder: str | Path) -> dict[str, Any]:
    """The settings of a model folder's ``generation_config.json``; none where it has no such file.

    Raises UserError where the file is damaged.
    """
    path = Path(folder) / NAME
    found = read_json_if_present(path, _REMEDY) or {}
    return {key: value for key, value in check(found, GenerationFile, str(path), _REMEDY).items() if key != DERIVED}


def write_generation(directory: str | Path, settings: Mapping[str, Any], ids: Mapping[str, Any]) -> None:
    """Writes ``settings``, and those of ``ids`` that are not None and have no setting."""
    write_json(directory, NAME, {key: value for key, value in ids.items() if value is not None} | dict(settings))


def end_ids(value: object) -> tuple[int, ...]:
    """The ids of ``eos_token_id``, which is one id, a list of them, or null."""
    if value is None:
        return ()
    return tuple(map(int, value)) if isinstance(value, Iterable) else (int(str(value)),)


def add_end_token(directory: str | Path, eos_id: int) -> None:
    """Lists ``eos_id``, which the model was taught to end replies with, in ``config.json`` and ``generation_config.json``.

    It precedes the end tokens that are listed already, and a list that has it stays as it is.
    """
    config, generation = read_json(directory, "config.json"), read_generation(directory)
    named, listed = end_ids(config.get("eos_token_id")), end_ids(generation.get("eos_token_id"))
    together = tuple(dict.fromkeys([eos_id, *listed, *named]))
    if eos_id not in named:
        write_json(directory, "config.json", config | {"eos_token_id": _one_or_many(together)})
    if eos_id not in listed and (eos_id not in named or (Path(directory) / NAME).exists()):
        write_json(directory, NAME, generation | {"eos_token_id": _one_or_many(together)})


def _one_or_many(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
