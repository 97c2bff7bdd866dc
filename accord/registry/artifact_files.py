"""The artifacts that the registry keeps: ``models/<digest>/`` beside the database, hard links to a stage's own files.

A stage that runs again replaces its ``model/`` as a whole and never writes into a file of it, so the linked bytes stay.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accord.errors import UserError
from accord.io.atomic import leftovers, move
from accord.io.digests import verify

FOLDER = "models"
OLD = 3600.0
"""Seconds after which a half-made folder is nobody's."""


@contextmanager
def link_folder(source: Path, root: Path) -> Iterator[Path]:
    """A folder under ``root`` with links to the files of ``source`` (copies, where it cannot link), to be put in place
    with ``place``; it is gone afterwards.  Raises UserError."""
    _sweep(root / FOLDER)
    aside = root / FOLDER / f".{source.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = aside / path.relative_to(source)
            if any(part.startswith(".") for part in path.relative_to(source).parts):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            link(path, target)
        yield aside
    except OSError as error:
        raise UserError(f"{error.filename or root}: could not be kept in the registry ({error.strerror}).") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Takes away what a killed process left half-made; younger ones may be somebody's work."""
    for leftover in leftovers(folder):
        with suppress(FileNotFoundError):  # another process was quicker
            if time.time() - leftover.stat().st_mtime > OLD:
                shutil.rmtree(leftover, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system or the system refuses one."""
    try:
        os.link(source.resolve(), target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def place(aside: Path, final: Path) -> None:
    """Puts a filled folder at ``final``; one that is there already stays, unless its bytes changed.  Raises OSError."""
    if not final.exists() or not _whole(final):
        move(aside, final)


def _whole(folder: Path) -> bool:
    try:
        verify(folder)
    except UserError:
        return False
    return True
