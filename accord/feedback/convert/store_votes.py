"""Votes of a file into a store: pairs, annotators without a token, and each vote once, however often it is imported."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.connect import writing
from accord.feedback.convert.file_vote import FileVote
from accord.feedback.entities import ANSWERS, Side
from accord.feedback.store import Store, digest_of, new_public_id

OTHER = {"a": "b", "b": "a"}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import added."""

    pairs: int
    votes: int
    again: int
    """Votes that were in the store already."""
    annotators: int
    """Whose votes these are."""


def import_votes(store: Store, project: str, judgments: Sequence[FileVote], now: datetime | None = None) -> Imported:
    """Adds the votes of a file, all or none.

    The same two replies in the other order are the same pair.  Where a file names no annotators, the first vote on each
    pair is one annotator's, the second another's.  A row that was imported before is not imported again.
    Raises UserError naming the pair where one cannot be stored.
    """
    owner, moment = store.project(project), now or schema.now()
    digests = [digest_of(judgment.pair) for judgment in judgments]
    added = store.add_pairs(project, [judgment.pair for judgment in judgments])
    names, requests = _names(judgments, digests), _requests(judgments, digests)
    with writing(store.engine) as c:
        people = _people(c, owner.id, list(dict.fromkeys(names)), moment)
        pairs = _pairs(c, owner.id, set(digests))
        known, taken = _known(c, people.values()), set(_questions(c, people.values()))
        rows = []
        for judgment, digest, name, request in zip(judgments, digests, names, requests, strict=True):
            if (people[name], request) not in known:
                rows.append(_row(pairs[digest], people[name], judgment, request, taken, moment))
        if rows:
            c.execute(sa.insert(schema.questions), [question for question, _ in rows])
            asked = _questions(c, people.values())
            keys = [(q["pair"], q["annotator"], q["occasion"]) for q, _ in rows]
            c.execute(
                sa.insert(schema.votes),
                [{"question": asked[key], **vote} for key, (_, vote) in zip(keys, rows, strict=True)],
            )
            _count_answers(c, sorted({number for number, _, _ in keys}))
    return Imported(added, len(rows), len(judgments) - len(rows), len(people))


def _requests(judgments: Sequence[FileVote], digests: Sequence[str]) -> list[str]:
    """An id for each vote, of its content and of how many equal rows came before it."""
    seen: Counter[str] = Counter()
    made = []
    for j, pair in zip(judgments, digests, strict=True):
        created = None if j.created is None else j.created.isoformat()
        content = [pair, j.pair.a.text, j.choice, j.annotator, j.strength, j.left, j.occasion, created]
        digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        made.append(f"import-{digest}-{seen[digest]}")
        seen[digest] += 1
    return made


def _names(judgments: Sequence[FileVote], digests: Sequence[str]) -> list[str]:
    """The names under which the store keeps the annotators of a file."""
    seen: Counter[str] = Counter()
    names = []
    for j, digest in zip(judgments, digests, strict=True):
        seen[digest] += not j.annotator
        named = "".join(ch if ch.isprintable() else "?" for ch in j.annotator.strip())
        if len(named) > 60:
            named = hashlib.blake2b(named.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        names.append(f"imported {named or seen[digest]}")
    return names


def _people(c: sa.Connection, project: int, names: Sequence[str], moment: datetime) -> dict[str, int]:
    """The annotators of the names, added where they are new, without a token."""
    table = schema.annotators
    query = sa.select(table.c.name, table.c.id).where(table.c.project == project)
    known = {row.name for row in c.execute(query)}
    new = [
        {"project": project, "name": name, "public_id": new_public_id(), "role": "annotator", "created": moment}
        for name in names
        if name not in known
    ]
    if new:
        c.execute(sa.insert(table), new)
    ids = {row.name: int(row.id) for row in c.execute(query)}
    return {name: ids[name] for name in names}


def _pairs(c: sa.Connection, project: int, digests: Iterable[str]) -> dict[str, tuple[int, str]]:
    """(id, text of candidate a) of each pair."""
    pairs, candidates = schema.pairs, schema.candidates
    query = (
        sa.select(pairs.c.digest, pairs.c.id, candidates.c.text)
        .join(candidates, candidates.c.id == pairs.c.a)
        .where(pairs.c.project == project)
    )
    wanted = set(digests)
    return {row.digest: (row.id, row.text) for row in c.execute(query) if row.digest in wanted}


def _questions(c: sa.Connection, people: Iterable[int]) -> dict[tuple[int, int, int], int]:
    """The questions asked of the annotators, by pair, annotator and occasion."""
    table = schema.questions
    query = sa.select(table.c.id, table.c.pair, table.c.annotator, table.c.occasion)
    rows = c.execute(query.where(table.c.annotator.in_(list(people))))
    return {(row.pair, row.annotator, row.occasion): row.id for row in rows}


def _known(c: sa.Connection, people: Iterable[int]) -> set[tuple[int, str]]:
    table = schema.votes
    query = sa.select(table.c.annotator, table.c.request).where(table.c.annotator.in_(list(people)))
    return {(row.annotator, row.request) for row in c.execute(query)}


def _row(
    pair: tuple[int, str],
    person: int,
    judgment: FileVote,
    request: str,
    taken: set[tuple[int, int, int]],
    moment: datetime,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of a question and of its vote; the question is added to ``taken``."""
    number, first = pair
    choice, left = judgment.choice, judgment.left or _drawn_side(request)
    if judgment.pair.a.text != first:  # the store has the two replies in the other order
        choice, left = OTHER.get(choice, choice), OTHER[left]  # type: ignore[assignment]
    occasion = judgment.occasion or 0
    while (number, person, occasion) in taken:
        occasion += 1
    taken.add((number, person, occasion))
    created = judgment.created or moment
    question: dict[str, Any] = {
        "pair": number, "annotator": person, "occasion": occasion, "left_side": left, "asked": created,
        "lease_until": created, "choice": choice,
    }  # fmt: skip
    vote: dict[str, Any] = {
        "annotator": person, "revision": 0, "kind": "vote", "choice": choice, "strength": judgment.strength,
        "seconds": judgment.seconds, "comment": judgment.comment or None, "tags": list(judgment.tags) or None,
        "request": request, "created": created,
    }  # fmt: skip
    return question, vote


def _drawn_side(request: str) -> Side:
    """A side by the vote's id, for a file that does not name it: statistics of sides stay unbiased."""
    return "a" if hashlib.blake2b(request.encode(), digest_size=1).digest()[0] < 128 else "b"


def _count_answers(c: sa.Connection, numbers: Sequence[int]) -> None:
    pairs, questions = schema.pairs, schema.questions
    answered = (
        sa.select(sa.func.count())
        .select_from(questions)
        .where(questions.c.pair == pairs.c.id, questions.c.occasion == 0, questions.c.choice.in_(ANSWERS))
        .scalar_subquery()
    )
    for start in range(0, len(numbers), 500):
        c.execute(sa.update(pairs).where(pairs.c.id.in_(numbers[start : start + 500])).values(answers=answered))
