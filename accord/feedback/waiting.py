"""What a stage waits for, in words, with the votes that are in the store by now."""

from __future__ import annotations

from pathlib import Path

from accord.errors import UserError
from accord.io.records import Wait, read_record_to_show

WAITING = "waiting.json"
"""The record of a stage that waits, in its folder."""


def waiting_in_words(directory: Path, key: str) -> str:
    """``waiting for 40 more votes at http://… (accord label NAME)``; empty where the stage with this key does not wait.

    Where the store cannot be read, the record's own number is shown.
    """
    record = read_record_to_show(directory / WAITING, Wait)
    if record.get("key") != key:
        return ""
    missing, project = record["missing"], record["project"]
    try:
        from accord.feedback.store import open_store
        from accord.feedback.wanted import answers_to

        missing = answers_to(open_store(create=False), project, record["pairs"]).missing(record["votes"])
    except UserError:
        pass
    return wait_in_words(missing, project, record["page"]) if missing else "waiting no longer: all its votes are there"


def wait_in_words(missing: int, project: str, page: str) -> str:
    """How many votes are missing and where they are given."""
    return f"waiting for {missing:,} more vote{'s' * (missing != 1)} at {page} (accord label {project})"
