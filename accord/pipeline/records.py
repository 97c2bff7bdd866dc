"""A stage's records: ``begun.json``, ``done.json``, digests of its outputs, and the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accord.io.digests import content_digest
from accord.io.finite_json import dumps
from accord.io.records import Begun, Done, read_record
from accord.runtime.console import console
from accord.runtime.optional import optional

DONE, BEGUN, JOURNAL, STATE = "done.json", "begun.json", "journal.jsonl", "state.pt"
RANKS_STATE, RANKS_FOLDER = "state.json", "state"
"""The saved state of several ranks: what names it, and the folder of its files."""
_NO_OUTPUT = (
    *(DONE, BEGUN, STATE, RANKS_STATE, RANKS_FOLDER, "config.yaml"),
    *("failed.json", "lock.json", "progress.json", "waiting.json"),
)


def is_record(name: str) -> bool:
    """Whether a file of this name is a stage's record, and not one of its results."""
    return name in _NO_OUTPUT


def has_state(directory: Path) -> bool:
    """Whether there is a saved state to resume from."""
    return (directory / STATE).exists() or (directory / RANKS_STATE).exists()


def read_done(directory: Path) -> dict[str, Any]:
    """The record of a finished stage; empty where it is not finished.  Raises UserError where it is damaged."""
    return read_record(directory / DONE, Done, "restore it, or remove it to run this stage again.")


def read_begun(directory: Path) -> dict[str, Any]:
    """The record of a stage that was started; empty where none was.  Raises UserError where it is damaged."""
    return read_record(directory / BEGUN, Begun, "restore it, or remove it to start this stage from the beginning.")


def outputs(directory: Path) -> dict[str, str]:
    """Digests of the files and folders that a stage wrote, by name, without hidden files and records."""
    names = sorted(p.name for p in directory.iterdir() if not p.name.startswith(".") and not is_record(p.name))
    return {name: content_digest(directory / name) for name in names}


def missing_outputs(directory: Path, done: Mapping[str, Any]) -> list[str]:
    """Outputs in a record that no longer exist."""
    return [name for name in done.get("outputs", ()) if not (directory / name).exists()]


def note(journal: Path | None, stage: str, key: str, event: str) -> None:
    """Appends an event to the journal: started, resumed, finished, failed or stopped.

    A single append, so that several processes can write to it.  A stage can do without it.
    """
    if journal is None:
        return
    line = {"stage": stage, "key": key, "event": event, "time": round(time.time(), 3), "pid": os.getpid()}
    with optional(f"{event!r} in {journal}", partial(console.print, markup=False)):
        descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, (dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)
