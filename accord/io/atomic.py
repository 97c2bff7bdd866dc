"""The only place that writes a file: aside, flushed to disk, then renamed, so that a kill leaves the old file or the new one.

Files that only grow (logs, metrics, the journal) are appended to where they belong and are not written here.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


# ------------------------------------------------------------------ files
@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary path of a new file, which takes the place of ``path`` at the end of the block.

    The folder is made where it is absent.  After an error ``path`` is as before and the temporary file is removed.
    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """The same, already open for bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """The temporary path of a new file, which becomes ``path`` at the end of the block if that name is still free.

    A link fails where the name is taken, a rename does not; on a file system without links the name is only looked at.
    Raises FileExistsError where another process was quicker, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Raises OSError."""
    with replacing_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8, line ends as they are.  Raises OSError."""
    write_bytes(path, content.encode())


def create_text(path: Path, content: str) -> None:
    """Writes a file whose name must be free.  Raises FileExistsError where another process was quicker, and OSError."""
    with creating(path) as temporary:
        temporary.write_bytes(content.encode())


def write_json(path: Path, content: Mapping[str, Any], sort_keys: bool = False) -> None:
    """Writes an indented JSON object.  Raises OSError."""
    write_text(path, json.dumps(content, indent=2, sort_keys=sort_keys) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, each as it comes.  Raises OSError."""
    with replacing_file(Path(path)) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def flush(path: Path) -> None:
    """Puts a file's bytes, or a folder's names, on the disk, so that they outlive a power cut.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot flush a folder
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ folders
@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new, empty folder, which takes the place of ``path`` at the end of the block; see ``exchange``.

    After an error ``path`` is as before and the new folder is removed.  Raises OSError.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        move(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange, the folder of before


def move(new: Path, path: Path) -> None:
    """Renames the folder ``new`` to ``path``; a folder that is there already ends up as ``new``.  Raises OSError."""
    if path.exists():
        exchange(new, path)
    else:
        os.replace(new, path)
    flush(path.parent)


def set_aside(path: Path) -> Path:
    """Renames a folder, where it exists, to its temporary path, for the caller to remove.  Raises OSError."""
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    if path.exists():
        os.replace(path, temporary)
    return temporary


def exchange(new: Path, old: Path) -> None:
    """Swaps two folders: in one step where the system can (Linux: renameat2), so that neither name is ever absent.

    Elsewhere by renames, between which ``old`` is absent for an instant; where the second one fails, the first is
    undone.  A kill in that instant leaves the old folder as ``.<name>.<pid>.old`` and the stage undone, so that
    it runs again.  Raises OSError.
    """
    if _exchange_in_one_step(new, old):
        return
    aside = old.with_name(f".{old.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except OSError:
        os.replace(aside, old)
        raise
    os.replace(aside, new)


def _exchange_in_one_step(new: Path, old: Path) -> bool:
    """False where the C library, the kernel or the file system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return int(rename(here, os.fsencode(new), here, os.fsencode(old), ctypes.c_uint(swap))) == 0


# ------------------------------------------------------------------ what a kill leaves
def temporary_path(path: Path) -> Path:
    """Where a process writes what will be ``path``: hidden, beside it, ``leftovers`` finds it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders in ``folder``, those of a process that still writes included."""
    return [*folder.glob(".*.tmp"), *folder.glob(".*.old")]
