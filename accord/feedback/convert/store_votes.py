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
from accord.feedback.convert.judgment import Judgment
from accord.feedback.entities import ANSWERS
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


def import_votes(store: Store, project: str, judgments: Sequence[Judgment], now: datetime | None = None) -> Imported:
    """Adds the votes of a file, all or none.

    The same two replies in the other order are the same pair.  Where a file names no annotators, the first vote on each
    pair is one annotator's, the second another's.  A row that was imported before is not imported again.
    Raises UserError naming the pair where one cannot be stored.
    """
    owner, moment = store.project(project), now or schema.now()
    added = store.add_pairs(project, [judgment.pair for judgment in judgments])
    requests = _requests(judgments)
    names = _names(judgments)
    with writing(store.engine) as c:
        people = {name: _person(c, owner.id, name, moment) for name in dict.fromkeys(names)}
        pairs = _pairs(c, owner.id, {digest_of(j.pair) for j in judgments})
        taken = _occasions(c, people.values())
        known = _known(c, people.values())
        votes = again = 0
        for judgment, name, request in zip(judgments, names, requests, strict=True):
            if (people[name], request) in known:
                again += 1
                continue
            _add(c, pairs[digest_of(judgment.pair)], people[name], judgment, request, taken, moment)
            votes += 1
        _count_answers(c, [pair for pair, _ in pairs.values()])
    return Imported(added, votes, again, len(people))


def _requests(judgments: Sequence[Judgment]) -> list[str]:
    """An id for each vote, of its content and of how many equal rows came before it."""
    seen: Counter[str] = Counter()
    made = []
    for j in judgments:
        created = None if j.created is None else j.created.isoformat()
        content = [digest_of(j.pair), j.pair.a.text, j.choice, j.annotator, j.strength, j.left, j.occasion, created]
        digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        made.append(f"import-{digest}-{seen[digest]}")
        seen[digest] += 1
    return made


def _names(judgments: Sequence[Judgment]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for j in judgments:
        digest = digest_of(j.pair)
        seen[digest] += not j.annotator
        named = "".join(ch if ch.isprintable() else "?" for ch in j.annotator.strip())
        if len(named) > 60:
            named = hashlib.blake2b(named.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        names.append(f"imported {named or seen[digest]}")
    return names


def _person(c: sa.Connection, project: int, name: str, moment: datetime) -> int:
    table = schema.annotators
    found = c.execute(
        sa.select(table.c.id).where(table.c.project == project, table.c.name == name)
    ).scalar_one_or_none()
    if found is not None:
        return int(found)
    values = {
        "project": project, "name": name, "public_id": new_public_id(), "role": "annotator", "created": moment,
    }  # fmt: skip
    return int(c.execute(sa.insert(table).values(values).returning(table.c.id)).scalar_one())


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


def _occasions(c: sa.Connection, people: Iterable[int]) -> set[tuple[int, int, int]]:
    table = schema.questions
    query = sa.select(table.c.pair, table.c.annotator, table.c.occasion).where(table.c.annotator.in_(list(people)))
    return {(row.pair, row.annotator, row.occasion) for row in c.execute(query)}


def _known(c: sa.Connection, people: Iterable[int]) -> set[tuple[int, str]]:
    table = schema.votes
    query = sa.select(table.c.annotator, table.c.request).where(table.c.annotator.in_(list(people)))
    return {(row.annotator, row.request) for row in c.execute(query)}


def _add(
    c: sa.Connection, pair: tuple[int, str], person: int, judgment: Judgment, request: str,
    taken: set[tuple[int, int, int]], moment: datetime,
) -> None:  # fmt: skip
    number, first = pair
    choice, left = judgment.choice, judgment.left
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
    table = schema.questions
    asked = c.execute(sa.insert(table).values(question).returning(table.c.id)).scalar_one()
    vote: dict[str, Any] = {
        "question": asked, "annotator": person, "revision": 0, "kind": "vote", "choice": choice,
        "strength": judgment.strength, "seconds": judgment.seconds, "comment": judgment.comment or None,
        "tags": list(judgment.tags) or None, "request": request, "created": created,
    }  # fmt: skip
    c.execute(sa.insert(schema.votes).values(vote))


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
