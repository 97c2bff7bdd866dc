"""A stage's failure as a sentence, and its record ``failed.json``."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.readers import read_record

FAILED = "failed.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sentence(error: BaseException) -> str:
    """A sentence for errors that are not bugs (config, full disk, missing file, out of memory); empty for others."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if full := next((e for e in _chain(error) if _number(e) in _FULL), None):
        where = getattr(full, "filename", None) or "the stage's folder"
        return (
            f"{where}: could not be written, since the disk is full; free some space and run again. The last saved state"
            " is kept."
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; fix this and run again. The last saved state is kept."
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory|not enough memory", text):
        return (
            "out of memory; lower training.micro_batch_size, batch_size or max_length.  The last saved state is kept."
        )
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: torch reports a failed write by its own error."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """The errno, which safetensors reports in its message."""
    found = re.search(r"\b(?:code: |os error )(\d+)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def in_words(error: BaseException, log: Path) -> str:
    """A sentence for any error, including bugs."""
    first = (str(error).strip().splitlines() or [""])[0]
    return sentence(error) or f"{type(error).__name__}: {first} (the traceback is in {log})"


def read_failure(directory: Path) -> dict[str, Any]:
    """The content of ``failed.json``, empty where there is none."""
    return read_record(directory / FAILED)
