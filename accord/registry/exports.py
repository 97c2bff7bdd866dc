"""Exports a registered model to a folder that does not need accord, and imports such folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from accord.errors import UserError
from accord.io.atomic import replacing_folder, write_json, write_text
from accord.io.digests import CARD, LINEAGE, MANIFEST, digest_of_files, file_digests, read_manifest, verify
from accord.io.finite_json import dumps
from accord.models.hub import model_files, pinned_model
from accord.registry.artifact_files import link
from accord.registry.card import card
from accord.registry.card_facts import comparisons
from accord.registry.export_target import EXPORT, require_free_file, require_free_folder
from accord.registry.family import Record, to_json, write_lineage
from accord.registry.gguf import KINDS, write_gguf
from accord.registry.manifest import publish, versions
from accord.registry.store import Store, Version

Format = Literal["hf", "safetensors", "gguf"]
FORMATS: tuple[Format, ...] = ("hf", "safetensors", "gguf")


def export(store: Store, text: str, target: Path, form: Format, quantize: str = "F16") -> tuple[Path, list[str]]:
    """Writes a version to ``target``; returns the path written and notes for its user.

    hf: the whole artifact with its model card, for transformers and for ``import_folder``.  safetensors: weights and
    config alone.  gguf: one file in the folder, or ``target`` itself where it ends in .gguf.  Only an earlier export of
    the same name is replaced.  Raises UserError.
    """
    found = store.find(text)
    verify(found.folder)
    if form == "gguf":
        if quantize not in KINDS:
            raise UserError(f"--quantize {quantize}: one of {', '.join(KINDS)}.")
        path = target if target.suffix == ".gguf" else target / f"{found.name}-{quantize}.gguf"
        require_free_file(path, found.name, store)
        return path, write_gguf(found.folder, path, quantize, found.name)
    require_free_folder(target, found.name, store)
    copy = _copy_weights if form == "safetensors" else partial(_copy_artifact, store)
    try:
        with replacing_folder(target.resolve()) as temporary:
            copy(found, temporary)
            files = [p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file()]
            write_json(temporary / EXPORT, {"name": found.name, "version": found.version, "files": sorted(files)})
    except OSError as error:
        raise UserError(f"{target}: could not be written ({error.strerror}).") from None
    return target, []


def _copy_weights(found: Version, folder: Path) -> None:
    names = [p.name for p in found.folder.iterdir() if p.suffix == ".safetensors" or p.name.endswith("index.json")]
    for name in sorted({*names, "config.json"}):
        shutil.copyfile(found.folder / name, folder / name)


def _copy_artifact(store: Store, found: Version, folder: Path) -> None:
    """Copies the files; writes manifest and lineage from the registry, with current metrics."""
    for path in found.folder.rglob("*"):
        if path.is_file() and path.name not in (MANIFEST, LINEAGE, CARD):
            (folder / path.relative_to(found.folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(found.folder))
    family = store.lineage(found)
    write_lineage(folder, {d: r for d, r in family.items() if d != found.digest})
    files = file_digests(folder)
    _require_same_digest(digest_of_files(files), found.digest, found.folder)
    record = {**found.manifest, "metrics": dict(found.metrics), "settings": dict(found.settings)}
    write_json(folder / MANIFEST, {**record, "digest": found.digest, "files": files})
    labels = {v.digest: v.label for v in store.list()}
    compared = list(comparisons(found.digest, list(map(Path, found.outs))))
    write_text(folder / CARD, card(found.digest, family, labels, found.name, compared))


def import_folder(store: Store, folder: Path, name: str = "") -> Version:
    """Registers an external artifact after verifying every digest.  Raises UserError naming the file at fault."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    folder = folder / "model" if (folder / "model" / MANIFEST).exists() else folder
    manifest = read_manifest(folder)
    if manifest and "files" not in manifest:  # of an earlier version, with one digest for all files
        files = {name: digest for name, digest in file_digests(folder).items() if name != CARD}
        _require_same_digest(digest_of_files(files), manifest["digest"], folder)
    verify(folder)
    return store.add(folder, name)


def import_from_hub(store: Store, text: str, name: str, say: Callable[[str], None]) -> Version:
    """Registers a model of the Hugging Face hub (``org/name@revision``) as it is there, its commit as its parent.

    One that accord exported has its own manifest, and is verified.  Raises UserError.
    """
    pinned = pinned_model(text)
    source = model_files(pinned, say)
    if read_manifest(source):
        return import_folder(store, source, name)
    owner = pinned.partition("@")[0]
    manifest = {
        "kind": "pretrained",
        "name": name or owner.rpartition("/")[2],
        "parents": {"source": pinned},
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }

    def write(folder: Path) -> None:
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith("."):
                link(path, folder / path.name)
        write_lineage(folder, {pinned: Record(owner, "model", pinned)})

    try:
        store.root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import.", dir=store.root) as place:
            publish(Path(place) / "model", write, manifest)
            return store.add(Path(place) / "model", name)
    except OSError as error:
        raise UserError(f"{store.root}: could not be written ({error.strerror}).") from None


def _require_same_digest(found: str, recorded: str, folder: Path) -> None:
    if found != recorded:
        raise UserError(f"{folder}: its files do not match the digest in {MANIFEST}; copy or restore the folder first.")


def describe(store: Store, found: Version) -> str:
    """Everything recorded about a version, as JSON."""
    return dumps(
        {
            "name": found.name,
            "version": found.version,
            "kind": found.kind,
            "digest": found.digest,
            "aliases": list(found.aliases),
            "tags": dict(found.tags),
            "outs": list(found.outs),
            "created": found.created,
            "code": found.code,
            "seed": found.seed,
            "parents": dict(found.parents),
            "metrics": dict(found.metrics),
            "settings": dict(found.settings),
            "folder": str(found.folder),
            "lineage": to_json(store.lineage(found))["records"],
        },
        indent=2,
    )
