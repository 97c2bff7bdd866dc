"""What went wrong with a stage, in a sentence; and ``failed.json``, which keeps it."""

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
    """For what is nobody's bug (a mistake in a config, a full disk, a missing file, no memory); else empty."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if full := next((e for e in _chain(error) if _number(e) in _FULL), None):
        where = getattr(full, "filename", None) or "the stage's folder"
        return f"{where}: could not be written, for the disk is full; make room and run again, the last good state is kept."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; run again when that is fixed, the last good state is kept."
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory|not enough memory", text):
        return (
            "memory ran out; training.micro_batch_size, batch_size or max_length made smaller need less."
            " The last good state is kept."
        )
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: torch reports a failed write by an error of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """The system's number for what went wrong; safetensors puts it into words."""
    found = re.search(r"\bcode: (\d+), kind: ", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def in_words(error: BaseException, log: Path) -> str:
    """For any error, our own bugs included."""
    first = (str(error).strip().splitlines() or [""])[0]
    return sentence(error) or f"{type(error).__name__}: {first} (the traceback is in {log})"


def read_failure(directory: Path) -> dict[str, Any]:
    """What ``failed.json`` says; empty where there is none."""
    return read_record(directory / FAILED)
