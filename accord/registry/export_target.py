"""Where an export may be written: a new place, or that of an earlier export of the same model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from accord.errors import UserError
from accord.io.digests import CARD, MANIFEST, read_manifest
from accord.io.records import Export, read_record_to_show
from accord.models.transformer_config import FAMILIES
from accord.registry import artifact_files
from accord.registry.store import Store

EXPORT = ".accord_export.json"
"""In an exported folder: the name and version of the model, and the files that were written."""
STAGE_RECORDS = ("done.json", "begun.json", "failed.json")
STRING = 8  # the number of its type in GGUF


def require_free_folder(target: Path, name: str, store: Store) -> None:
    """Raises UserError unless a folder is new or empty, or holds an earlier export of that model and nothing else."""
    try:
        _require_outside(target, store)
        if not target.exists():
            return
        if not target.is_dir():
            raise UserError(f"{target}: is a file; give a folder.")
        found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir() or p.is_symlink()}
        if not found and not any(target.iterdir()):
            return
        exported, files = _earlier_export(target)
        if exported != name:
            what = f"has an export of {exported}" if exported else "has other content"
            raise UserError(f"{target}: {what}, which is not replaced by {name}; give a new folder.")
        if others := sorted(found - files):
            raise UserError(
                f"{target}: {others[0]} is not part of the earlier export; move it elsewhere, or give a new folder."
            )
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: a null character
        raise UserError(
            f"{target}: cannot be read ({getattr(error, 'strerror', None) or error}); give a new folder."
        ) from None


def _earlier_export(folder: Path) -> tuple[str, set[str]]:
    """The name of the model that was exported to a folder, and the files of the export; empty where there was none."""
    record = read_record_to_show(folder / EXPORT, Export)
    if record:
        return record["name"], {EXPORT, *record["files"]}
    if not (folder / CARD).exists():
        return "", set()
    try:
        manifest = read_manifest(folder)  # of an earlier version: a manifest and a model card
    except UserError:
        return "", set()
    listed = manifest.get("files")
    return str(manifest.get("name", "")), {MANIFEST, CARD, *(listed if isinstance(listed, dict) else ())}


def require_free_file(path: Path, name: str, store: Store) -> None:
    """Raises UserError unless a file is new, or an earlier export of that model."""
    try:
        _require_outside(path.parent, store)
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a file, or a folder whose name does not end in .gguf.")
        if (path.parent / MANIFEST).exists():
            raise UserError(f"{path.parent}: is a model folder, whose {MANIFEST} lists its files; give another folder.")
        if path.exists() and _gguf_name(path) != name_in_gguf(name):
            raise UserError(f"{path}: is not an earlier export of {name}, which alone is replaced; give a new file.")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a new file."
        ) from None


def _require_outside(target: Path, store: Store) -> None:
    """Raises UserError for a folder of a stage or of the registry, or one within them."""
    place, models = target.resolve(), (store.root / artifact_files.FOLDER).resolve()
    if place.is_relative_to(models):
        raise UserError(
            f"{target}: belongs to the registry; give a folder outside of {store.root / artifact_files.FOLDER}."
        )
    for folder in (place, *place.parents):
        if any((folder / record).is_file() for record in STAGE_RECORDS):
            raise UserError(f"{target}: belongs to the stage in {folder}; give a folder outside of it.")


def name_in_gguf(name: str) -> str:
    """The name that a GGUF file gets: transformers mistakes some names for a family."""
    return "model" if name in FAMILIES else name


def _gguf_name(path: Path) -> str:
    """The name in a GGUF file, which is among the strings at its start; empty for another file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return ""
        file.seek(24)  # after the version and two counts
        try:
            while True:
                key = _text(file)
                if file.read(4) != struct.pack("<I", STRING):
                    return ""
                value = _text(file)
                if key == "general.name":
                    return value
        except (struct.error, MemoryError, OverflowError):  # the file ends here
            return ""


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(min(length, 1 << 20)).decode(errors="replace")
