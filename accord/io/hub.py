"""The Hugging Face hub: which commit a revision means, and the files of a commit in the hub's cache.

Every failure is a sentence.  ``huggingface_hub`` reads HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from accord.errors import UserError
from accord.io.atomic import write_text
from accord.io.readers import shorten

COMMIT = re.compile(r"[0-9a-f]{40}")
PATIENCE = 10.0
"""Seconds to wait for an answer of the hub."""
_HERE = {"model": "folder", "dataset": "file"}
_WORDS = {"model": "model", "dataset": "data set"}


MAIN = "main"


class Unreachable(Exception):
    """There is no connection to the hub."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model or a data set on the hub at a revision; empty: the newest."""

    id: str
    revision: str = ""
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit."""
        return bool(COMMIT.fullmatch(self.revision))


_meant: dict[Repository, str] = {}
"""Of repositories at a commit: the branch or tag that meant it when the hub was asked."""


def at_commit(repository: Repository) -> Repository:
    """The repository at the commit that its revision means now.

    Without a connection it is the commit that was downloaded last.  Raises UserError where neither is there.
    """
    if repository.pinned:
        return repository
    from huggingface_hub import HfApi

    try:
        with hub_errors(repository):
            api, revision = HfApi(), repository.revision or None
            found = api.repo_info(repository.id, repo_type=repository.kind, revision=revision, timeout=PATIENCE)
    except Unreachable as error:
        if commit := _downloaded_last(repository):
            return replace(repository, revision=commit)
        raise _unavailable(repository, error) from None
    pinned = replace(repository, revision=str(found.sha))
    _meant[pinned] = repository.revision or MAIN
    return pinned


def cached_folder(repository: Repository) -> Path:
    """Where the cache has the files of a commit, or would have them."""
    return _cache_of(repository) / "snapshots" / repository.revision


def download(repository: Repository, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
    """The folder of a revision's files in the cache, with those that match the patterns.

    Raises UserError where they are not there and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        with hub_errors(repository):
            folder = snapshot_download(
                repository.id,
                repo_type=repository.kind,
                revision=repository.revision or None,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
    except Unreachable as error:
        raise _unavailable(repository, error) from None
    if repository in _meant:  # the hub's own cache notes it only where it is asked for a branch
        reference = _cache_of(repository) / "refs" / _meant[repository]
        with suppress(OSError):  # a cache that may only be read
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, repository.revision)
    return Path(folder)


@contextmanager
def hub_errors(repository: Repository) -> Iterator[None]:
    """Turns what the hub answers into sentences; raises Unreachable where it does not answer."""
    from huggingface_hub import errors

    what, here = _WORDS[repository.kind], _HERE[repository.kind]
    of_connections = cast(
        "tuple[type[Exception], ...]", (*errors.HfHubHTTPError.__bases__, OSError)
    )  # the HTTP library's
    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{repository}: the {what} {repository.id} has no revision {repository.revision!r}; name a branch, a tag or a"
            " commit."
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"{repository}: access to this {what} is granted on its page (https://huggingface.co/{repository.id}); ask for"
            " it there, then log in with `hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such {here} here, and no such {what} on the Hugging Face hub for you; a private or gated one"
            " needs `hf auth login`."
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{repository}: {shorten(str(error))}") from None
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(_reason(error)) from None
    except of_connections as error:
        raise Unreachable(_reason(error)) from None


def _reason(error: BaseException) -> str:
    """Why the hub was not asked or did not answer, in a few words."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    cause = error.__cause__ or error
    words = str(cause).partition("For more information")[0]
    return shorten(" ".join(words.split()) or type(cause).__name__, 120)


def _unavailable(repository: Repository, why: Unreachable) -> UserError:
    what, here = _WORDS[repository.kind], _HERE[repository.kind]
    get = f"hf download {repository.id}" + (" --repo-type dataset" if repository.kind == "dataset" else "")
    if repository.revision:
        get += f" --revision {repository.revision}"
    return UserError(
        f"{repository}: no such {here} here, and as a {what} of the Hugging Face hub it is not in the cache and the hub cannot"
        f" be reached ({why}); download it once with a connection (`{get}`), or name a {here}."
    )


def _downloaded_last(repository: Repository) -> str:
    """The commit that the cache has for a revision; empty where it has none."""
    reference = _cache_of(repository) / "refs" / (repository.revision or MAIN)
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    known = COMMIT.fullmatch(commit) and cached_folder(replace(repository, revision=commit)).is_dir()
    return commit if known else ""


def _cache_of(repository: Repository) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repository.kind}s--{repository.id.replace('/', '--')}"
