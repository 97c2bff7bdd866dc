"""Votes: rows are only added, so that a correction and an undo are rows too; the newest one of a question is current."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import reading, writing
from accord.feedback.entities import ANSWERS, Annotator, Choice, Question, Shown, Side, Vote
from accord.feedback.shown import load_questions
from accord.feedback.store import Store

SHOWN: tuple[Shown, ...] = ("left", "right", "tie", "both_bad", "skip")
STRENGTHS = (1, 2, 3)
MAX_COMMENT = 10_000
MAX_DEMONSTRATION = 200_000
MAX_TAGS = 32
MAX_SECONDS = 86400.0


def cast(
    store: Store,
    annotator: Annotator,
    question_id: int,
    choice: Shown,
    *,
    request: str,
    strength: int = 1,
    seconds: float = 0.0,
    comment: str = "",
    tags: Sequence[str] = (),
    now: datetime | None = None,
) -> Vote:
    """Records a vote; a second one on the same question corrects the first, and the same request again is the same vote.

    A vote counts also after the question's lease expired: no one's work is lost.  Raises UserError where the values are
    out of range, or the question is another annotator's.
    """
    _check(request, choice, strength, seconds, comment, tags)
    allowed = store.project(annotator.project).settings.tags
    if stray := [tag for tag in tags if tag not in allowed]:
        raise UserError(f"tag {stray[0]!r}: the project has {', '.join(allowed) or 'no tags'}.")
    with writing(store.engine) as c:
        _lock(c, schema.annotators, annotator.id)
        if (known := _by_request(c, schema.votes, annotator, request)) is not None:
            if known.question != question_id or known.kind != "vote":
                raise UserError(f"request {request!r}: was used for another vote; send a new one.")
            return _vote(known, _question(c, annotator, question_id).left_side)
        question = _question(c, annotator, question_id)
        values = {
            "choice": _candidate(choice, question.left_side),
            "strength": strength,
            "seconds": float(seconds),
            "comment": comment or None,
            "tags": list(tags) or None,
        }
        vote = _append(c, question, request, "vote", values, now or schema.now())
    return _vote(vote, question.left_side)


def undo(store: Store, annotator: Annotator, request: str, now: datetime | None = None) -> Question:
    """Takes back an annotator's newest vote; returns its question, leased to them again.  Undoing again goes further back.

    The same request again undoes nothing more.  Raises UserError where there is nothing to undo.
    """
    _check_request(request)
    moment = now or schema.now()
    lease = timedelta(seconds=store.project(annotator.project).settings.lease_seconds)
    with writing(store.engine) as c:
        _lock(c, schema.annotators, annotator.id)
        known = _by_request(c, schema.votes, annotator, request)
        if known is not None and known.kind != "undo":
            raise UserError(f"request {request!r}: was used for a vote; send a new one.")
        if known is None:
            newest = c.execute(_current(annotator).order_by(schema.votes.c.id.desc()).limit(1)).one_or_none()
            if newest is None:
                raise UserError("nothing to undo: no vote of yours stands.")
            question = _question(c, annotator, newest.question)
            values = {"choice": None, "strength": 1, "seconds": 0.0, "comment": None, "tags": None}
            known = _append(c, question, request, "undo", values, moment)
            table = schema.questions
            c.execute(sa.update(table).where(table.c.id == question.id).values(lease_until=moment + lease))
        return load_questions(c, [known.question])[0]


def add_demonstration(
    store: Store, annotator: Annotator, question_id: int, text: str, *, request: str, now: datetime | None = None
) -> int:
    """Records an annotator's own, better answer to a question's prompt; returns its number.  Raises UserError."""
    _check_request(request)
    if not text.strip():
        raise UserError("the answer is empty; write one, or close it.")
    if len(text) > MAX_DEMONSTRATION:
        raise UserError(f"the answer has {len(text):,} characters, at most {MAX_DEMONSTRATION:,} are stored.")
    table = schema.demonstrations
    with writing(store.engine) as c:
        _lock(c, schema.annotators, annotator.id)
        if (known := _by_request(c, table, annotator, request)) is not None:
            return int(known.id)
        question = _question(c, annotator, question_id)
        values = {
            "question": question.id, "annotator": annotator.id, "text": text, "request": request,
            "created": now or schema.now(),
        }  # fmt: skip
        return int(c.execute(sa.insert(table).values(values).returning(table.c.id)).scalar_one())


def history(store: Store, annotator: Annotator, question_id: int | None = None) -> list[Vote]:
    """All rows of an annotator's votes and undos, or those of one question, oldest first."""
    votes, questions = schema.votes, schema.questions
    query = sa.select(votes, questions.c.left_side).join(questions, questions.c.id == votes.c.question)
    query = query.where(votes.c.annotator == annotator.id).order_by(votes.c.id)
    if question_id is not None:
        query = query.where(votes.c.question == question_id)
    with reading(store.engine) as c:
        return [_vote(row, row.left_side) for row in c.execute(query)]


# ------------------------------------------------------------------ rows
def _lock(c: sa.Connection, table: sa.Table, row: int) -> None:
    """Lets one transaction after the other change what belongs to a row; SQLite has one writer anyway."""
    c.execute(sa.select(table.c.id).where(table.c.id == row).with_for_update(key_share=True))


def _by_request(c: sa.Connection, table: sa.Table, annotator: Annotator, request: str) -> Any:
    query = sa.select(table).where(table.c.annotator == annotator.id, table.c.request == request)
    return c.execute(query).one_or_none()


def _question(c: sa.Connection, annotator: Annotator, question_id: int) -> Any:
    """Raises UserError where it is not one of the annotator's."""
    table = schema.questions
    if not 0 <= question_id < 2**31:
        question_id = 0  # nobody's; the database could not hold the number
    query = sa.select(table).where(table.c.id == question_id, table.c.annotator == annotator.id)
    if (row := c.execute(query).one_or_none()) is None:
        raise UserError(f"question {question_id}: was not asked of you; reload the page.")
    return row


def _current(annotator: Annotator) -> sa.Select[Any]:
    """The annotator's votes that stand: the newest row of each question, unless it is an undo."""
    votes = schema.votes
    newer = votes.alias()
    later = sa.exists().where(newer.c.question == votes.c.question, newer.c.revision > votes.c.revision)
    return sa.select(votes).where(votes.c.annotator == annotator.id, votes.c.kind == "vote", ~later)


def _append(c: sa.Connection, question: Any, request: str, kind: str, values: dict[str, Any], moment: datetime) -> Any:
    """Adds a row and lets the question's and the pair's summaries follow it."""
    votes, questions, pairs = schema.votes, schema.questions, schema.pairs
    _lock(c, pairs, question.pair)
    last = c.execute(sa.select(sa.func.max(votes.c.revision)).where(votes.c.question == question.id)).scalar_one()
    row = {
        "question": question.id,
        "annotator": question.annotator,
        "revision": 0 if last is None else last + 1,
        "kind": kind,
        "request": request,
        "created": moment,
        **values,
    }
    made = c.execute(sa.insert(votes).values(row).returning(votes)).one()
    c.execute(sa.update(questions).where(questions.c.id == question.id).values(choice=values["choice"]))
    answered = (
        sa.select(sa.func.count())
        .select_from(questions)
        .where(questions.c.pair == question.pair, questions.c.occasion == 0, questions.c.choice.in_(ANSWERS))
        .scalar_subquery()
    )
    c.execute(sa.update(pairs).where(pairs.c.id == question.pair).values(answers=answered))
    return made


def _vote(row: Any, left: Side) -> Vote:
    shown = None if row.choice is None else shown_of(row.choice, left)
    return Vote(
        row.id, row.question, row.revision, row.kind, row.choice, shown, row.strength, row.seconds, row.comment or "",
        tuple(row.tags or ()), row.created,
    )  # fmt: skip


def shown_of(choice: Choice, left: Side) -> Shown:
    """The side on which the chosen candidate was shown.

    >>> shown_of("b", "b"), shown_of("tie", "b")
    ('left', 'tie')
    """
    if choice == "a" or choice == "b":  # not a tuple, which does not narrow the type
        return "left" if choice == left else "right"
    return choice


def _candidate(shown: Shown, left: Side) -> Choice:
    """The candidate that was shown on a side."""
    if shown == "left":
        return left
    if shown == "right":
        return "b" if left == "a" else "a"
    return shown


# ------------------------------------------------------------------ checks
def _check_request(request: str) -> None:
    if not (1 <= len(request) <= 64 and request.isascii() and request.isprintable()):
        raise UserError("request: 1 to 64 printable ASCII characters, a new random id for each vote.")


def _check(request: str, choice: str, strength: int, seconds: float, comment: str, tags: Sequence[str]) -> None:
    """Raises UserError where a value of a vote is out of range."""
    _check_request(request)
    if choice not in SHOWN:
        raise UserError(f"choice {choice!r}: expected one of {', '.join(SHOWN)}.")
    if isinstance(strength, bool) or strength not in STRENGTHS:
        raise UserError(f"strength {strength!r}: expected 1, 2 or 3.")
    if not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise UserError(f"seconds {seconds!r}: expected 0 to {MAX_SECONDS:.0f}.")
    if len(comment) > MAX_COMMENT:
        raise UserError(f"the comment has {len(comment):,} characters, at most {MAX_COMMENT:,} are stored.")
    if len(tags) > MAX_TAGS or len(set(tags)) < len(tags):
        raise UserError(f"tags: at most {MAX_TAGS}, each once.")
