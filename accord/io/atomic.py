"""The only module that writes files: to a temporary path, flushed, then renamed, so that a kill leaves the old or the new file.

Files that only grow (logs, metrics, the journal) are appended to elsewhere.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from accord.io.finite_json import dumps


# ------------------------------------------------------------------ files
@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary path of a new file, which replaces ``path`` at the end of the block.

    Missing folders are created.  Its permissions are those of an existing ``path``, else what the umask allows, whatever
    the library that writes it sets.  After an error ``path`` is unchanged and the temporary file is removed.
    Raises OSError.
    """
    temporary = temporary_path(path)
    with _naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            allowed = _new_file(temporary)
            yield temporary
            _permit(temporary, path.stat().st_mode & 0o7777 if path.exists() else allowed)
            flush(temporary)
            os.replace(temporary, path)
        finally:
            _remove(temporary)
        flush(path.parent)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Has errors of the block name ``path``: a failed write names no file, and a temporary one means nothing to a user."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) == temporary:
            error.filename, error.filename2 = str(path), None
        raise


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # of the first error, which is the one to report
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """As ``replacing``, with the file open for writing bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """The temporary path of a new file, which becomes ``path`` at the end of the block if that does not exist yet.

    A hard link fails where ``path`` exists, a rename does not; on a file system without links existence is only checked.
    Raises FileExistsError where another process created it first, and OSError.
    """
    temporary = temporary_path(path)
    with _naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            allowed = _new_file(temporary)
            yield temporary
            _permit(temporary, allowed)
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:
                if path.exists():
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
                os.replace(temporary, path)
        finally:
            _remove(temporary)


def _new_file(path: Path) -> int:
    """Creates an empty file; returns its permissions, which the umask has limited."""
    path.unlink(missing_ok=True)
    path.touch(exist_ok=False)
    return path.stat().st_mode & 0o7777


def _permit(path: Path, mode: int) -> None:
    """Sets permissions, except where the file system has none."""
    if path.stat().st_mode & 0o7777 != mode:
        with suppress(PermissionError, NotImplementedError):
            path.chmod(mode)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes.  Raises OSError."""
    with replacing_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 without converting line ends; "?" for halves of characters, which UTF-8 has not.  Raises OSError."""
    write_bytes(path, content.encode(errors="replace"))


def create_text(path: Path, content: str) -> None:
    """Creates a file.  Raises FileExistsError where it exists, and OSError."""
    with creating(path) as temporary:
        temporary.write_bytes(content.encode())


def write_json(path: Path, content: Mapping[str, Any], sort_keys: bool = False) -> None:
    """Writes an indented JSON object; null for a number that is not finite.  Raises OSError."""
    write_text(path, dumps(content, indent=2, sort_keys=sort_keys) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, row by row; null for a number that is not finite.  Raises OSError."""
    with replacing_file(Path(path)) as file:
        for row in rows:
            file.write((dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))


def flush(path: Path) -> None:
    """Flushes a file's bytes, or a folder's names, to disk, so that they survive a power failure.  Raises OSError."""
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
    """A new, empty folder, which replaces ``path`` at the end of the block; see ``exchange``.

    Its files are as readable as the umask allows, and it has the permissions of an existing ``path``.
    After an error ``path`` is unchanged and the new folder is removed.  Raises OSError.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    with _naming(path, temporary):
        try:
            temporary.mkdir(parents=True)
            allowed = temporary.stat().st_mode & 0o666
            yield temporary
            for file in (p for p in temporary.rglob("*") if p.is_file()):
                _permit(file, file.stat().st_mode & 0o7777 | allowed)
            if path.exists():
                _permit(temporary, path.stat().st_mode & 0o7777)
            move(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after an exchange, the old folder


def move(new: Path, path: Path) -> None:
    """Renames the folder ``new`` to ``path``; an existing folder there ends up as ``new``.  Raises OSError."""
    if path.exists():
        exchange(new, path)
    else:
        os.replace(new, path)
    flush(path.parent)


def move_folder(source: Path, target: Path) -> None:
    """Renames a folder to a path that does not exist; onto another file system it is copied and then removed.

    Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = temporary_path(target)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, symlinks=True)
        os.replace(temporary, target)
        shutil.rmtree(set_aside(source), ignore_errors=True)
    flush(target.parent)
    flush(source.parent)


def set_aside(path: Path) -> Path:
    """Renames a folder, if it exists, to its temporary path, for the caller to remove.  Raises OSError."""
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    if path.exists():
        os.replace(path, temporary)
    return temporary


def exchange(new: Path, old: Path) -> None:
    """Swaps two folders: in one step where the system can (Linux: renameat2), so that both names always exist.

    Elsewhere by renames, between which ``old`` is missing for an instant; where the second one fails, the first is
    reverted.  A kill in that instant leaves the old folder as ``.<name>.<pid>.old`` and the stage unfinished, so that
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
    """Whether the C library, the kernel and the file system could swap them."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return int(rename(here, os.fsencode(new), here, os.fsencode(old), ctypes.c_uint(swap))) == 0


# ------------------------------------------------------------------ temporary paths
def temporary_path(path: Path) -> Path:
    """Where this process writes a new version of ``path``: a hidden path in the same folder, found by ``leftovers``."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders in ``folder``, including those of processes that are still writing."""
    return [*folder.glob(".*.tmp"), *folder.glob(".*.old")]
