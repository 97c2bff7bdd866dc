"""Models of the Hugging Face hub: ``org/name`` or ``org/name@revision``.  Loads no torch.

``pinned_model`` puts the commit in the name, so that the name determines the weights; ``model_files`` downloads them.
Weights come from safetensors alone, and no code is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from accord.errors import UserError
from accord.io.hub import Repository, at_commit, cached_folder, download
from accord.io.readers import shorten
from accord.io.records import ShardIndex, read_record

_NAME = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[A-Za-z0-9][\w./-]{0,200}))?", re.ASCII
)
_BARE = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[A-Za-z0-9][\w./-]{0,200}))?", re.ASCII)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, HEAD_CONFIG = "reward_head.safetensors", "reward_head.json"
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", HEAD, "README.md")
"""All that a model needs beside its weights: config, tokenizer, chat template, the index of the shards, a reward head; and
its card, for the license and the language."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
OTHERS = ("*/*",)
"""Folders in a repository have other forms of the weights (ONNX, the original checkpoints)."""


def hub_model(text: str) -> Repository | None:
    """The parts of ``org/name@revision``; None where it is a path here, a file's name or something else.

    >>> hub_model("org/name@v1")
    Repository(id='org/name', revision='v1', kind='model')
    """
    found = _NAME.fullmatch(text)
    if not found or text.endswith((".gguf", ".jsonl", ".json", ".yaml")) or Path(text).exists():
        return None
    return Repository(found["id"], found["revision"] or "")


def is_hub_model(text: str) -> bool:
    """Whether a setting names a model of the hub: its id has one slash, and nothing here has this name."""
    return hub_model(text) is not None


@lru_cache(maxsize=64)
def pinned_model(text: str) -> str:
    """The name with the commit that its revision means now; one process asks once, and no weights are read.

    Names of one word (``gpt2``) are taken too.  Raises UserError where there is no such model, or neither a connection nor
    an earlier download.
    """
    return str(at_commit(_require_name(text)))


def model_files(text: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder with config, tokenizer and weights of a model, downloaded where they are not in the cache.

    ``say`` is given a line before a download.  Raises UserError where the model has no weights as safetensors.
    """
    repository = at_commit(_require_name(text))
    folder = cached_folder(repository)
    if is_complete(folder):
        return folder
    say(f"{repository.id}: downloading {repository.revision[:8]} from the Hugging Face hub to {folder}")
    folder = download(repository, SMALL_FILES, OTHERS)
    if not (folder / "config.json").is_file():
        raise UserError(f"{repository}: has no config.json, so it is not a model that can be opened; name another one.")
    shards = _shards(folder) or [WEIGHTS]
    folder = download(repository, [*SMALL_FILES, *shards], OTHERS)
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise UserError(
            f"{repository}: has no {missing[0]}; only weights as safetensors are read, since other files can run code: name"
            " a revision that has them, or save the model again with transformers."
        )
    return folder


def tokenizer_files(text: str) -> Path:
    """The folder with config and tokenizer of a model, without weights."""
    repository = at_commit(_require_name(text))
    folder = cached_folder(repository)
    return folder if _has_tokenizer(folder) else download(repository, SMALL_FILES, OTHERS)


def is_complete(folder: Path) -> bool:
    """Whether a folder of the cache has all that a model is opened from: it may hold what another program needed."""
    if not (folder / "config.json").is_file() or not _has_tokenizer(folder):
        return False
    if (folder / HEAD_CONFIG).is_file() and not (folder / HEAD).is_file():
        return False
    return (folder / WEIGHTS).is_file() or all((folder / name).is_file() for name in _shards(folder) or [WEIGHTS])


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)


def _shards(folder: Path) -> list[str]:
    """The files that the index names, all of them plain names."""
    index = read_record(folder / INDEX, ShardIndex, "download the model again.")
    names = list(dict.fromkeys(index.get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX}: shard {shorten(name)!r} is no safetensors file beside the index.")
    return names


def _require_name(text: str) -> Repository:
    found = _NAME.fullmatch(text) or _BARE.fullmatch(text)
    if found is None:
        raise UserError(
            f"{shorten(text)}: no such folder or file, and not a model's name on the Hugging Face hub, such as org/name or"
            " org/name@revision."
        )
    return Repository(found["id"], found["revision"] or "")
