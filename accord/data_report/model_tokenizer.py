"""The tokenizer that ``--model`` names: no weights are read."""

from __future__ import annotations

import sys
from multiprocessing import parent_process
from pathlib import Path

from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.io.readers import shorten
from accord.models.hub import is_hub_model, tokenizer_files

SMALL = ("transformer", "mamba", "demo")
"""The small models, which share a tokenizer."""
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def open_named_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a folder, a stage's folder, a .gguf file, a small model, ``smollm2``, a name in the registry, or a
    Hugging Face id.

    Raises UserError where there is none.
    """
    if model in SMALL and not Path(model).exists():
        return small_tokenizer()
    found = _place(model)
    if found.suffix != ".gguf":
        return Tokenizer.open(found)
    if parent_process() is None:  # once, not in every process
        print(f"opening {found.name} (a .gguf file takes about half a minute)", file=sys.stderr, flush=True)
    return Tokenizer.from_gguf(found)


def _place(model: str) -> Path:
    path = Path(model)
    try:
        exists = bool(model) and path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UserError(f"--model {shorten(model)}: cannot be opened ({error.strerror}).") from None
    if path.suffix == ".gguf" and path.is_file():
        return path
    for folder in (path, path / "model"):
        if exists and any((folder / name).is_file() for name in FILES):
            return folder
    if exists:
        raise UserError(f"--model {model}: no tokenizer here: neither tokenizer.json nor another of its files.")
    if model == "smollm2":
        from accord.data.sentiment import smollm2_gguf

        return smollm2_gguf()
    return _of_hub(model) if is_hub_model(model) else _registered(model)


def _registered(model: str) -> Path:
    from accord.registry.store import open_store

    try:
        return open_store().find(model).folder
    except UserError as error:
        why = str(error).removeprefix(f"{model}: ").rstrip(".")
        raise UserError(
            f"--model {shorten(model)}: no such model; give a folder, a .gguf file, a name in the registry or a Hugging"
            f" Face id ({why})."
        ) from None


def _of_hub(model: str) -> Path:
    try:
        return tokenizer_files(model)
    except UserError as error:
        raise UserError(f"--model {error}") from None
