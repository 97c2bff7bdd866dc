"""A stage's failure as a sentence, and its record ``failed.json``."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from accord.errors import Failed, UserError
from accord.io.readers import shorten
from accord.io.records import Failure, read_record_to_show
from accord.runtime.run import Run

FAILED = "failed.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|unable to) allocate|not enough memory", re.IGNORECASE)
_MEMORY = {
    "start": "out of memory before the first step, while models and data were opened; use a smaller model, fewer or shorter"
    " rows, or a device with more memory.",
    "steps": "out of memory; lower training.micro_batch_size, batch_size or max_length.  The last saved state is kept.",
    "end": "out of memory after the last step, while the result was measured or saved; free some memory and run again.  The"
    " last saved state is kept.",
}
Moment = Literal["start", "steps", "end"]
"""When a stage failed: before its first step, in its steps, or after the last one."""


def moment_of(run: Run) -> Moment:
    """How far a run is."""
    if not run.total_steps:
        return "start"
    return "steps" if run.step < run.total_steps else "end"


def sentence(error: BaseException, moment: Moment = "steps") -> str:
    """A sentence for errors that are not bugs (config, full disk, missing file, out of memory); empty for others."""
    if isinstance(error, (UserError, Failed)):
        return str(error)
    if full := next((e for e in _chain(error) if _number(e) in _FULL), None):
        where = getattr(full, "filename", None) or "the stage's folder"
        return (
            f"{where}: could not be written, since the disk is full; free some space and run again. The last saved state"
            " is kept."
        )
    if any(isinstance(e, MemoryError) or _NO_MEMORY.search(str(e)) for e in _chain(error)):
        return _MEMORY[moment]
    if isinstance(error, OSError) and error.strerror:
        where = shorten(error.filename) if error.filename else "a file or a connection"
        return f"{where}: {error.strerror}; fix this and run again. The last saved state is kept."
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


def in_words(error: BaseException, log: Path, moment: Moment = "steps") -> str:
    """A sentence for any error, including bugs."""
    first = (str(error).strip().splitlines() or [""])[0]
    return sentence(error, moment) or f"{type(error).__name__}: {first} (the traceback is in {log})"


def before_start(name: str, error: BaseException) -> str:
    """A sentence for an error in a stage that has not touched its folder; for a bug it names the line of code."""
    if words := sentence(error, "start"):
        return words.replace(" The last saved state is kept.", "").replace("  The last saved state is kept.", "")
    first = (str(error).strip().splitlines() or [""])[0]
    last = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    where = f", at {Path(last.filename).name} line {last.lineno}" if last else ""
    return f"{name}: {type(error).__name__}: {first} (before its first step{where}; --debug shows the traceback)."


def read_failure(directory: Path) -> dict[str, Any]:
    """The content of ``failed.json``, empty where there is none."""
    return read_record_to_show(directory / FAILED, Failure)
