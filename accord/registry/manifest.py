"""Artifacts: folders that transformers can open, with a manifest of their kind, inputs, settings and digests."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.atomic import replacing_folder, write_json
from accord.io.digests import MANIFEST, digest_of_files, file_digests


def publish(directory: Path, write: Callable[[Path], None], manifest: Mapping[str, Any]) -> str:
    """Writes a new folder with ``write`` and a manifest, and replaces ``directory`` by it; returns its digest.

    ``digest`` and ``files``, the digest of each file, are added to the manifest.  After a kill the old folder remains, and
    a reader sees the old folder or the new one (``io.atomic.exchange`` says where).  Raises UserError.
    """
    try:
        with replacing_folder(directory) as temporary:
            write(temporary)
            files = file_digests(temporary)
            digest = digest_of_files(files)
            write_json(temporary / MANIFEST, {**manifest, "digest": digest, "files": files})
    except OSError as error:
        raise UserError(f"{directory}: could not be written ({error.strerror}); the old content is kept.") from None
    return digest


def versions() -> dict[str, str]:
    """Versions of the software that determines results."""
    return {"accord": version("accord"), "torch": version("torch"), "python": platform.python_version()}
