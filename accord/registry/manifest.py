"""Artifacts: folders that transformers can open, with a manifest that says what they are and what they were made of."""

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
    """Fills a new folder by ``write``, adds the manifest, and puts it in place of ``directory``; returns its digest.

    The manifest gets ``digest`` and ``files``, the digest of each file.  A kill before the end leaves what was there
    before, and a reader sees the old folder or the new one: see ``io.atomic.exchange`` for where that holds.
    """
    try:
        with replacing_folder(directory) as temporary:
            write(temporary)
            files = file_digests(temporary)
            digest = digest_of_files(files)
            write_json(temporary / MANIFEST, {**manifest, "digest": digest, "files": files})
    except OSError as error:
        raise UserError(f"{directory}: could not be written ({error.strerror}); what was there is kept.") from None
    return digest


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {"accord": version("accord"), "torch": version("torch"), "python": platform.python_version()}
