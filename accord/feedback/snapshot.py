"""Snapshots: the votes of a project up to a moment, as files with a digest, which is what a pipeline reads."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.convert.file_vote import Written, as_lines
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.convert.trl import write_chat_pairs
from accord.feedback.store import Store
from accord.feedback.vote_rows import as_json, read_votes
from accord.io.atomic import replacing_folder, write_bytes, write_json, write_text
from accord.io.finite_json import dumps

VOTES = "votes.jsonl"
RECORD = "snapshot.json"
PREFERENCES = "preferences.jsonl"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A written snapshot."""

    folder: Path
    project: str
    digest: str
    """Of votes.jsonl."""
    votes: int
    until: datetime
    preferences: int
    """Rows of preferences.jsonl."""
    left_out: Counter[str]
    """Votes that are in none of these rows, by reason."""


def take_snapshot(
    store: Store,
    project: str,
    folder: Path,
    until: datetime | None = None,
    comments: bool = False,
    pairs: PairOptions | None = None,
) -> Snapshot:
    """Writes votes.jsonl and snapshot.json into ``folder``; the same votes give the same bytes.

    With ``pairs`` also preferences.jsonl, so that the folder is ``data.train`` of a stage; what it leaves out is counted in
    snapshot.json.  Comments and tags are written only if ``comments``; names never.
    Raises UserError where the folder cannot be written or holds something else.
    """
    _require_own(folder)
    moment = until or schema.now()
    rows = read_votes(store, project, moment)
    lines = sorted(dumps(as_json(row, comments), sort_keys=True) for row in rows)
    content = "".join(f"{line}\n" for line in lines).encode("ascii")
    digest = hashlib.sha256(content).hexdigest()
    record = {
        "project": project,
        "until": moment.isoformat(),
        "votes": len(rows),
        "choices": {choice: sum(row.choice == choice for row in rows) for choice in sorted({r.choice for r in rows})},
        "annotators": len({row.annotator for row in rows}),
        "pairs": len({row.pair for row in rows}),
        "digest": digest,
    }
    preferences = Written() if pairs is None else write_chat_pairs(rows, pairs)
    if pairs is not None:
        record["preferences"] = {"rows": len(preferences.rows), "left_out": dict(sorted(preferences.left_out.items()))}
    try:
        with replacing_folder(folder) as new:
            write_bytes(new / VOTES, content)
            if preferences.rows:
                write_text(new / PREFERENCES, as_lines(preferences.rows))
            write_json(new / RECORD, record)
    except OSError as error:
        raise UserError(f"{folder}: the snapshot cannot be written ({error.strerror}).") from None
    return Snapshot(folder, project, digest, len(rows), moment, len(preferences.rows), preferences.left_out)


def _require_own(folder: Path) -> None:
    """Raises UserError where a folder holds something that is not a snapshot: it would be replaced."""
    if folder.exists() and not (folder.is_dir() and ((folder / RECORD).is_file() or not any(folder.iterdir()))):
        raise UserError(f"{folder}: exists and is not a snapshot, so it is not replaced; give a new folder.")
