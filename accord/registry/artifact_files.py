"""The registry's artifacts: ``models/<digest>/`` beside the database, with hard links to a stage's files.

A stage that runs again replaces its whole ``model/`` and never modifies a file in it, so that linked files stay.
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
ABANDONED_AFTER = 3600.0
"""Seconds after which a temporary folder counts as abandoned."""


@contextmanager
def link_folder(source: Path, root: Path) -> Iterator[Path]:
    """A temporary folder under ``root`` with links to the files of ``source`` (copies where links fail), for ``place``; it
    is removed at the end of the block.  Raises UserError."""
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
        raise UserError(f"{error.filename or root}: could not be added to the registry ({error.strerror}).") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes temporary folders of killed processes; recent ones may still be in use."""
    for leftover in leftovers(folder):
        with suppress(FileNotFoundError):  # another process removed it
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER:
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
    """Moves a folder to ``final``, unless that exists with unchanged files.  Raises OSError."""
    if not final.exists() or not _is_intact(final):
        move(aside, final)


def _is_intact(folder: Path) -> bool:
    try:
        verify(folder)
    except UserError:
        return False
    return True
