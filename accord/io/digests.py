"""Digests of files and folders, and verification of model folders against their manifests.

In ``accord.io``, because several packages open models and tokenizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from accord.errors import UserError
from accord.io.readers import require_file
from accord.io.records import Manifest, read_record

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
CARD = "README.md"
TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
     "tokenizer.model", "vocab.json", "merges.txt"}
)  # fmt: skip
"""Files that determine a folder's tokenizer."""


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """The digest of each file by its name relative to the folder, without manifests."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in found}


def digest_of_files(files: Mapping[str, str]) -> str:
    """One digest of names and digests, without ``lineage.json``, which is not content."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(files, key=PurePosixPath):
        if PurePosixPath(name).name != LINEAGE:
            state.update(f"{name}\0{files[name]}\n".encode())
    return state.hexdigest()


def content_digest(path: Path) -> str:
    """The digest of a file's bytes, or of a folder's files by relative name and bytes (without manifest and lineage).

    For a folder with a manifest this trusts the recorded digest, which is fast (``verify`` reads the files).  Raises
    UserError where the path does not exist.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        with suppress(FileNotFoundError, NotADirectoryError):
            require_file(path)
        raise UserError(f"{path}: no such file or folder.")
    manifest = read_manifest(path)
    return str(manifest["digest"]) if manifest else digest_of_files(file_digests(path))


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest, empty where there is none.  Raises UserError where it is damaged."""
    return read_record(folder / MANIFEST, Manifest, "run the stage that wrote it again.")


def verify(folder: Path, only: Collection[str] = ()) -> None:
    """Checks every file against the manifest; ``only`` limits this to some names.

    The model card and hidden files are not checked.  A folder without a manifest, or with an old one that lists no
    files, passes.  Raises UserError naming the file that changed, is missing or is not listed.
    """
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if files is None:
        return
    remedy = "copy the folder again, or run the stage that wrote it again (accord run FILE --force STAGE)."
    listed = {name: digest for name, digest in files.items() if not only or name in only}
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing, though {MANIFEST} lists it; {remedy}")
        if (found := file_digest(path)) != digest:
            raise UserError(f"{path}: changed since it was written (digest {found[:8]}, not {digest[:8]}); {remedy}")
    for name in sorted(_present(folder) - set(files)):
        if not only or name in only:
            raise UserError(
                f"{folder / name}: is not listed in {MANIFEST}, so it is not part of this model; move it elsewhere."
            )
    if not only and digest_of_files(files) != manifest["digest"]:
        raise UserError(f"{folder / MANIFEST}: its digest does not match the files it lists; {remedy}")


def _present(folder: Path) -> set[str]:
    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {n.as_posix() for n in names if n.as_posix() != CARD and not any(part.startswith(".") for part in n.parts)}
