"""Snapshots: the votes of a project up to a moment, as files with a digest, which is what a pipeline reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import reading
from accord.feedback.entities import Candidate, VoteRow
from accord.feedback.store import Store
from accord.io.atomic import replacing_folder, write_bytes, write_json
from accord.io.finite_json import dumps

VOTES = "votes.jsonl"
RECORD = "snapshot.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A written snapshot."""

    folder: Path
    project: str
    digest: str
    """Of votes.jsonl."""
    votes: int
    until: datetime


def read_votes(store: Store, project: str, until: datetime | None = None) -> list[VoteRow]:
    """The votes that were current at a moment, with everything that was shown, oldest first; skips are among them."""
    owner = store.project(project)
    votes, questions, pairs = schema.votes, schema.questions, schema.pairs
    people, prompts = schema.annotators, schema.prompts
    a, b = schema.candidates.alias("first"), schema.candidates.alias("second")
    newer = votes.alias("newer")
    later = sa.exists().where(newer.c.question == votes.c.question, newer.c.revision > votes.c.revision)
    if until is not None:
        later = later.where(newer.c.created <= until)
    query = (
        sa.select(
            votes, questions.c.left_side, questions.c.occasion, pairs.c.id.label("pair"), pairs.c.digest,
            pairs.c.probability, pairs.c.gold, pairs.c.source, people.c.public_id, prompts.c.messages,
            *(column.label(f"a_{column.name}") for column in a.columns),
            *(column.label(f"b_{column.name}") for column in b.columns),
        )
        .join(questions, questions.c.id == votes.c.question)
        .join(pairs, pairs.c.id == questions.c.pair)
        .join(prompts, prompts.c.id == pairs.c.prompt)
        .join(people, people.c.id == votes.c.annotator)
        .join(a, a.c.id == pairs.c.a)
        .join(b, b.c.id == pairs.c.b)
        .where(pairs.c.project == owner.id, votes.c.kind == "vote", ~later)
        .order_by(votes.c.id)
    )  # fmt: skip
    if until is not None:
        query = query.where(votes.c.created <= until)
    with reading(store.engine) as c:
        return [_row(row) for row in c.execute(query)]


def _row(row: Any) -> VoteRow:
    first, second = (
        Candidate(
            row._mapping[f"{side}_id"], row._mapping[f"{side}_text"],
            None if row._mapping[f"{side}_tokens"] is None else tuple(row._mapping[f"{side}_tokens"]),
            row._mapping[f"{side}_policy"], row._mapping[f"{side}_sampling"],
        )
        for side in ("a", "b")
    )  # fmt: skip
    return VoteRow(
        vote=row.id,
        pair=row.pair,
        digest=row.digest,
        prompt=row.messages,
        a=first,
        b=second,
        choice=row.choice,
        strength=row.strength,
        seconds=row.seconds,
        left=row.left_side,
        annotator=row.public_id,
        occasion=row.occasion,
        probability=row.probability,
        gold=row.gold,
        source=row.source,
        created=row.created,
        comment=row.comment or "",
        tags=tuple(row.tags or ()),
    )


def take_snapshot(
    store: Store, project: str, folder: Path, until: datetime | None = None, comments: bool = False
) -> Snapshot:
    """Writes votes.jsonl and snapshot.json into ``folder``; the same votes give the same bytes.

    Comments and tags are written only if ``comments``; names never.  Raises UserError where the folder cannot be written
    or holds something else.
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
    try:
        with replacing_folder(folder) as new:
            write_bytes(new / VOTES, content)
            write_json(new / RECORD, record)
    except OSError as error:
        raise UserError(f"{folder}: the snapshot cannot be written ({error.strerror}).") from None
    return Snapshot(folder, project, digest, len(rows), moment)


def _require_own(folder: Path) -> None:
    """Raises UserError where a folder holds something that is not a snapshot: it would be replaced."""
    if folder.exists() and not (folder.is_dir() and ((folder / RECORD).is_file() or not any(folder.iterdir()))):
        raise UserError(f"{folder}: exists and is not a snapshot, so it is not replaced; give a new folder.")


def as_json(row: VoteRow, comments: bool = False) -> dict[str, Any]:
    """A vote as an object of votes.jsonl, without the database's own numbers."""
    made: dict[str, Any] = {
        "pair": row.digest,
        "prompt": [dict(message) for message in row.prompt],
        **{side: _candidate(candidate) for side, candidate in (("a", row.a), ("b", row.b))},
        "choice": row.choice,
        "strength": row.strength,
        "seconds": row.seconds,
        "left": row.left,
        "annotator": row.annotator,
        "occasion": row.occasion,
        "probability": row.probability,
        "gold": row.gold,
        "source": row.source,
        "created": row.created.isoformat(),
    }
    return {**made, "comment": row.comment, "tags": list(row.tags)} if comments else made


def _candidate(candidate: Candidate) -> dict[str, Any]:
    tokens = None if candidate.tokens is None else list(candidate.tokens)
    return {
        "text": candidate.text, "tokens": tokens, "policy": candidate.policy, "sampling": dict(candidate.sampling)
    }  # fmt: skip
