"""Reads a project's current votes, with everything that was shown, and states them as plain JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from accord.data.messages import template_columns
from accord.data.turns import Turns
from accord.feedback import schema
from accord.feedback.connect import reading
from accord.feedback.entities import Candidate, VoteRow
from accord.feedback.store import Store


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
            pairs.c.probability, pairs.c.gold, pairs.c.source, people.c.public_id, prompts.c.messages, prompts.c.inputs,
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
        inputs=row.inputs or {},
    )


def as_json(row: VoteRow, comments: bool = False) -> dict[str, Any]:
    """A vote as an object of votes.jsonl, without the database's own numbers."""
    made: dict[str, Any] = {
        "pair": row.digest,
        "prompt": [dict(message) for message in row.prompt],
        **template_columns(Turns(row.prompt, row.inputs)),
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
