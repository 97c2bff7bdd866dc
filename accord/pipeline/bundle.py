"""Which files a stage needs on a node that does not share this disk, and where they stand there, by the digest of the input.

The models and rows that an input was made from are sent as far as their lineage needs: manifests and records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accord.config.functions import is_function
from accord.io.digests import LINEAGE, MANIFEST, content_digest, file_digest
from accord.io.finite_json import dumps
from accord.io.records import Finished, read_record_to_show
from accord.pipeline.records import DONE

DEPTH = 16
"""Generations of data files that are followed."""


@dataclass(slots=True)
class Bundle:
    """Files for a node, by their path there."""

    root: str
    """The folder of all inputs on the node."""
    files: dict[str, Path] = field(default_factory=dict)
    """Path there: path here."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Path there: content, of records that name paths."""

    def add(self, path: Path, whole: bool = True, depth: int = DEPTH) -> str:
        """Adds a file or folder; returns its path there.  ``whole``: not only what a lineage reads of it."""
        digest = content_digest(path)
        if path.is_dir():
            place = f"{self.root}/{digest}/{path.name}"
            for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
                if whole or file.name in (MANIFEST, LINEAGE):
                    self.files[f"{place}/{file.relative_to(path).as_posix()}"] = file
            return place
        record = self._record(path, depth)
        mark = hashlib.blake2b(record, digest_size=4).hexdigest() if record else "alone"
        place = f"{self.root}/{digest}-{mark}/{path.parent.name}"  # a lineage names a data file with its stage's folder
        self.files[f"{place}/{path.name}"] = path
        if record:
            self.texts[f"{place}/{DONE}"] = record
            settings = path.parent / "config.yaml"
            if settings.is_file():
                self.files[f"{place}/{settings.name}"] = settings
        return f"{place}/{path.name}"

    def _record(self, path: Path, depth: int) -> bytes:
        """The record of the stage that wrote a data file, with the paths of its inputs there; empty where there is none."""
        done = read_record_to_show(path.parent / DONE, Finished)
        if not done or not depth:
            return b""
        sources = {}
        for key, value in done.get("sources", {}).items():
            source = Path(value)
            if is_function(value) or not source.exists() or content_digest(source) != done["inputs"].get(key):
                sources[key] = value
            else:
                sources[key] = self.add(source, whole=source.is_file(), depth=depth - 1)
        return (dumps({**done, "sources": sources}, indent=2) + "\n").encode()

    def digests(self) -> dict[str, str]:
        """The digest of each file, by its path there."""
        own = {there: hashlib.blake2b(text, digest_size=16).hexdigest() for there, text in self.texts.items()}
        return {there: file_digest(here) for there, here in self.files.items()} | own


def inputs_of(sources: Mapping[str, str]) -> dict[str, Path]:
    """The inputs of a stage that are files or folders, by config key."""
    return {key: Path(value) for key, value in sources.items() if not is_function(value) and Path(value).exists()}
