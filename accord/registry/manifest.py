"""Artifacts: folders that transformers can open, with a manifest that says what they are and what they were made of."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.digests import (
    LINEAGE,
    MANIFEST,
    content_digest,
    digest_of_files,
    file_digest,
    file_digests,
    read_manifest,
    verify,
)

__all__ = [
    "LINEAGE",
    "MANIFEST",
    "content_digest",
    "exchange",
    "file_digest",
    "publish",
    "read_manifest",
    "verify",
    "versions",
    "write_json",
]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically: aside, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def publish(directory: Path, write: Callable[[Path], None], manifest: Mapping[str, Any]) -> str:
    """Fills a new folder by ``write``, adds the manifest, and puts it in place of ``directory``; returns its digest.

    The manifest gets ``digest`` and ``files``, the digest of each file.  A kill before the end leaves what was there
    before, and a reader sees the old folder or the new one: see ``exchange`` for where that holds.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        files = file_digests(temporary)
        digest = digest_of_files(files)
        write_json(temporary / MANIFEST, {**manifest, "digest": digest, "files": files})
        if directory.exists():
            exchange(temporary, directory)
        else:
            os.replace(temporary, directory)
    except OSError as error:
        raise UserError(f"{directory}: could not be written ({error.strerror}); what was there is kept.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange, the folder of before
    return digest


def exchange(new: Path, old: Path) -> None:
    """Swaps two folders: in one step where the system can (Linux: renameat2), so that neither name is ever absent.

    Elsewhere by renames, between which ``old`` is absent for an instant; where the second one fails, the first is
    taken back.  A kill in that instant leaves the old folder as ``.<name>.<pid>.old`` and the stage undone, so that
    it runs again.  Raises OSError.
    """
    if _exchange_at_once(new, old):
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


def _exchange_at_once(new: Path, old: Path) -> bool:
    """False where the C library, the kernel or the file system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return int(rename(here, os.fsencode(new), here, os.fsencode(old), ctypes.c_uint(swap))) == 0


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {"accord": version("accord"), "torch": version("torch"), "python": platform.python_version()}
