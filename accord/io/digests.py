"""Digests of files and folders, and whether a model folder still holds the bytes that its manifest records.

Below every room, because models and tokenizers are opened in several of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from accord.errors import UserError
from accord.io.readers import read_json_if_present

MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
CARD = "README.md"
TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
     "tokenizer.model", "vocab.json", "merges.txt"}
)  # fmt: skip
"""What decides how a folder's texts are read."""


def file_digest(path: Path) -> str:
    """blake2b of a file's bytes, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """The digest of each file by its name relative to the folder, the manifests left out."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in found}


def digest_of_files(files: Mapping[str, str]) -> str:
    """Of names and digests; records of where a model comes from (``lineage.json``) are no content and left out."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(files, key=PurePosixPath):
        if PurePosixPath(name).name != LINEAGE:
            state.update(f"{name}\0{files[name]}\n".encode())
    return state.hexdigest()


def content_digest(path: Path) -> str:
    """Of a file's bytes, or of a folder's files by relative name and bytes (manifest and lineage left out).

    A folder with a manifest is taken at its word, which is quick: keys are made of this.  ``verify`` is not so
    trusting.  Raises UserError where there is nothing.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder.")
    manifest = read_manifest(path)
    return str(manifest["digest"]) if manifest else digest_of_files(file_digests(path))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a folder's manifest; empty where there is none.  Raises UserError where it is damaged."""
    path, remedy = folder / MANIFEST, "run the stage that wrote it again."
    found = read_json_if_present(path, remedy)
    if found is None:
        return {}
    if not isinstance(found.get("digest"), str):
        raise UserError(f"{path}: holds no digest; {remedy}")
    return found


def verify(folder: Path, only: Collection[str] = ()) -> None:
    """Reads every file and holds it against the manifest; ``only`` limits this to some names.

    The model card may be edited, and hidden files are nobody's model.  A folder without a manifest, or with an old
    one that lists no files, passes.  Raises UserError naming the file that changed, is missing or is not listed.
    """
    manifest = read_manifest(folder)
    files = manifest.get("files")
    if files is None:
        return
    if not isinstance(files, dict):
        raise UserError(f"{folder / MANIFEST}: 'files' must map names to digests; run the stage that wrote it again.")
    mend = "copy the folder again, or run the stage that wrote it again (accord run FILE --force STAGE)."
    listed = {name: digest for name, digest in files.items() if not only or name in only}
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing, though {MANIFEST} lists it; {mend}")
        if (found := file_digest(path)) != digest:
            raise UserError(f"{path}: changed since it was written (digest {found[:8]}, not {digest[:8]}); {mend}")
    for name in sorted(_present(folder) - set(files)):
        if not only or name in only:
            raise UserError(
                f"{folder / name}: is not listed in {MANIFEST}, so it is no part of this model; move it away."
            )
    if not only and digest_of_files(files) != manifest["digest"]:
        raise UserError(f"{folder / MANIFEST}: its digest does not fit the files it lists; {mend}")


def _present(folder: Path) -> set[str]:
    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {n.as_posix() for n in names if n.as_posix() != CARD and not any(part.startswith(".") for part in n.parts)}
