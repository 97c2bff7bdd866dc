"""Data sets of the Hugging Face hub: ``org/name``, ``org/name:split``, ``org/name:config/split``, ``org/name@revision:…``.

The files of one commit are downloaded to the hub's cache and read from there; ``pinned`` puts the commit in the name, so
that the name determines the rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from accord.errors import UserError
from accord.io.hub import Repository, at_commit, download
from accord.io.installation import install_command
from accord.io.readers import shorten

_NAME = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:((?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?",
    re.ASCII,
)
_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|gz|txt|py|ya?ml|zst)$")
READ = ("json", "csv", "parquet")
"""The formats of ``datasets`` whose files we read."""
PATTERNS = [
    "*.md",
    "*.yaml",
    *(f"*.{end}{gz}" for end in ("jsonl", "json", "csv", "tsv", "parquet") for gz in ("", ".gz")),
]


@dataclass(frozen=True, slots=True)
class HubName:
    """A data set on the hub, and which part of it."""

    id: str
    revision: str = ""
    config: str = ""
    split: str = ""

    def __str__(self) -> str:
        part = f"{self.config}/{self.split}" if self.config else self.split
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{part}" if part else "")


def hub_name(text: str) -> HubName | None:
    """The parts of a name; None where it is a path, a file's name or something else.

    >>> hub_name("org/name@v1:config/train")
    HubName(id='org/name', revision='v1', config='config', split='train')
    """
    found = _NAME.fullmatch(text)
    if not found or _FILE.search(found["id"]) or Path(found["id"].partition("/")[0]).exists():
        return None
    return HubName(found["id"], *(found[part] or "" for part in ("revision", "config", "split")))


def is_hub_name(text: str) -> bool:
    """Whether a setting names a data set of the hub: its id has one slash, no file's ending, and begins with no folder here."""
    return hub_name(text) is not None


@lru_cache(maxsize=64)
def pinned(text: str) -> str:
    """The name with the commit that its revision means now; one process asks once.

    Without a connection it is the commit that was downloaded last.  Raises UserError where neither is there.
    """
    name = _require_name(text)
    return str(replace(name, revision=at_commit(_repository(name)).revision))


def hub_files(text: str) -> list[Path]:
    """The files of a split, in order, downloaded where they are not in the cache.

    Without a split it is ``train``, or the only one.  Raises UserError where the extra is missing, the data set, its
    config or split is not there, or its files are of a kind that is not read.
    """
    name = _require_name(text)
    try:
        from datasets import load_dataset_builder
    except ImportError:
        raise UserError(
            f"{text}: reading data sets of the Hugging Face hub needs datasets; {install_command('data')}"
        ) from None
    folder = download(_repository(name), PATTERNS)
    try:
        builder = load_dataset_builder(str(folder), name.config or None)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{text}: {shorten(' '.join(str(error).split()), 300)}; name a config as {name.id}:CONFIG/SPLIT"
        ) from None
    splits = {str(split): list(map(Path, files)) for split, files in (builder.config.data_files or {}).items()}
    wanted = name.split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if wanted not in splits:
        raise UserError(
            f"{text}: no split {wanted!r}; it has {', '.join(splits) or 'none'}: name one as {name.id}:SPLIT"
        )
    forms = [form.__name__.lower() for form in type(builder).__mro__]
    if not set(READ) & set(forms):
        raise UserError(f"{text}: its files are none of {', '.join(READ)}, which are read")
    return splits[wanted]


def _require_name(text: str) -> HubName:
    name = hub_name(text)
    if name is None:
        raise UserError(f"{text}: not the name of a data set, such as org/name or org/name@revision:config/split")
    return name


def _repository(name: HubName) -> Repository:
    return Repository(name.id, name.revision, "dataset")
