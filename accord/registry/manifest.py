"""Artifacts: folders that transformers can open, with a manifest that says what they are and what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accord.config import UserError

MANIFEST = "manifest.json"


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def content_digest(path: Path) -> str:
    """Of a file's bytes, or of a folder's files by relative name and bytes (the manifest left out).

    Raises UserError where there is nothing.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder.")
    manifest = path / MANIFEST
    if manifest.exists():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["digest"])
    state = hashlib.blake2b(digest_size=16)
    for inner in sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST):
        state.update(f"{inner.relative_to(path).as_posix()}\0{file_digest(inner)}\n".encode())
    return state.hexdigest()


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

    A kill before the end leaves what was there before.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        digest = content_digest(temporary)
        write_json(temporary / MANIFEST, {**manifest, "digest": digest})
        old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
        if directory.exists():
            os.replace(directory, old)
        os.replace(temporary, directory)
    except OSError as error:
        raise UserError(f"{directory}: could not be written ({error.strerror}); what was there is kept.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return digest


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {"accord": version("accord"), "torch": version("torch"), "python": platform.python_version()}
