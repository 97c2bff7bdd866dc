"""Which question an annotator is asked next: their open ones, then gold questions, repeats, and pairs below the overlap.

A pair is reserved for whom it is shown to until its lease expires, so that no two people get one by accident.  Sides and
the kind of the next question come from counters, so that a reload changes neither.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.connect import reading, writing
from accord.feedback.entities import ANSWERS, Annotator, Project, Question, Side
from accord.feedback.shown import load_questions
from accord.feedback.store import Store
from accord.runtime.seeds import derive

REPEAT_GAP = 10
"""Questions between the first time that a pair is asked and its repeat."""


def next_questions(store: Store, annotator: Annotator, count: int = 2, now: datetime | None = None) -> list[Question]:
    """Up to ``count`` questions, leased to the annotator: their open ones first, then new ones."""
    moment = now or schema.now()
    project = store.project(annotator.project)
    lease = timedelta(seconds=project.settings.lease_seconds)
    with reading(store.engine) as c:  # a reload finds what is open without waiting for writers
        open_ids = _open(c, annotator, count, moment + lease / 2)
        if len(open_ids) == count:
            return load_questions(c, open_ids)
    with writing(store.engine) as c:
        projects = schema.projects  # one transaction after the other hands out a project's pairs
        c.execute(sa.select(projects.c.id).where(projects.c.id == project.id).with_for_update(key_share=True))
        ids = _open(c, annotator, count, moment)
        for _ in range(count - len(ids)):
            if (new := _ask(c, project, annotator, moment, lease)) is None:
                break
            ids.append(new)
        table = schema.questions
        c.execute(sa.update(table).where(table.c.id.in_(ids)).values(lease_until=moment + lease))
        return load_questions(c, ids)


def _open(c: sa.Connection, annotator: Annotator, count: int, until: datetime) -> list[int]:
    """The annotator's open questions whose lease lasts beyond ``until``, oldest first."""
    q = schema.questions
    query = sa.select(q.c.id).where(q.c.annotator == annotator.id, q.c.choice.is_(None), q.c.lease_until > until)
    return [int(i) for i in c.execute(query.order_by(q.c.id).limit(count)).scalars()]


def _ask(c: sa.Connection, project: Project, annotator: Annotator, moment: datetime, lease: timedelta) -> int | None:
    """The id of a new question, or of an abandoned one of theirs that is free again; None where nothing is left."""
    q = schema.questions
    asked = c.execute(sa.select(sa.func.count()).where(q.c.annotator == annotator.id)).scalar_one()
    seed = int(annotator.public_id, 16)
    pair, occasion = _choose(c, project, annotator, moment, random.Random(derive(seed, "next question", asked)))
    if pair is None:
        return None
    abandoned = sa.and_(q.c.annotator == annotator.id, q.c.pair == pair, q.c.occasion == occasion)
    again = sa.update(q).where(abandoned).values(lease_until=moment + lease).returning(q.c.id)
    if (found := c.execute(again).scalar_one_or_none()) is not None:
        return int(found)
    values = {
        "pair": pair,
        "annotator": annotator.id,
        "occasion": occasion,
        "left_side": side(seed, pair, occasion),
        "asked": moment,
        "lease_until": moment + lease,
    }
    return int(c.execute(sa.insert(q).values(values).returning(q.c.id)).scalar_one())


def _choose(
    c: sa.Connection, project: Project, annotator: Annotator, moment: datetime, draw: random.Random
) -> tuple[int | None, int]:
    """The pair to ask next and its occasion."""
    settings = project.settings
    share = draw.random()
    if share < settings.gold_share and (pair := _gold(c, project, annotator, moment)) is not None:
        return pair, 0
    if settings.gold_share <= share < settings.gold_share + settings.repeat_share:
        pair = _repeat(c, annotator, moment, draw)
        if pair is not None:
            return pair, 1
    pair = _ordinary(c, project, annotator, moment)
    if pair is None and not _has_ordinary(c, project):
        pair = _gold(c, project, annotator, moment)
    return pair, 0


def side(seed: int, pair: int, occasion: int) -> Side:
    """The candidate shown left, drawn for one annotator, pair and occasion."""
    return "a" if random.Random(derive(seed, "left side", pair, occasion)).random() < 0.5 else "b"


def _unasked(project: Project, annotator: Annotator, moment: datetime) -> sa.Select[Any]:
    """The first pair that the annotator has neither decided on nor open."""
    pairs, q = schema.pairs, schema.questions
    seen = sa.exists().where(
        q.c.pair == pairs.c.id,
        q.c.annotator == annotator.id,
        sa.or_(q.c.choice.is_not(None), q.c.lease_until > moment),
    )
    return sa.select(pairs.c.id).where(pairs.c.project == project.id, ~seen).order_by(pairs.c.id).limit(1)


def _gold(c: sa.Connection, project: Project, annotator: Annotator, moment: datetime) -> int | None:
    """The first gold question that the annotator has not seen; everyone is asked each."""
    query = _unasked(project, annotator, moment).where(schema.pairs.c.gold.is_not(None))
    return c.execute(query).scalar_one_or_none()


def _repeat(c: sa.Connection, annotator: Annotator, moment: datetime, draw: random.Random) -> int | None:
    """A pair that the annotator answered at least ``REPEAT_GAP`` questions ago and has not been asked again."""
    pairs, q = schema.pairs, schema.questions
    mine = q.c.annotator == annotator.id
    gap = sa.select(q.c.id).where(mine).order_by(q.c.id.desc()).offset(REPEAT_GAP - 1).limit(1).scalar_subquery()
    again = q.alias()
    repeated = sa.exists().where(
        again.c.pair == q.c.pair,
        again.c.annotator == annotator.id,
        again.c.occasion > 0,
        sa.or_(again.c.choice.is_not(None), again.c.lease_until > moment),
    )
    query = (
        sa.select(q.c.pair)
        .join(pairs, pairs.c.id == q.c.pair)
        .where(mine, q.c.occasion == 0, q.c.choice.in_(ANSWERS), q.c.id <= gap, pairs.c.gold.is_(None), ~repeated)
        .order_by(q.c.id)
    )
    found = list(c.execute(query).scalars())
    return draw.choice(found) if found else None


def _ordinary(c: sa.Connection, project: Project, annotator: Annotator, moment: datetime) -> int | None:
    """The first pair that lacks answers, those that have some first; another person's running lease counts as an answer."""
    pairs, q = schema.pairs, schema.questions
    leased = (
        sa.select(sa.func.count())
        .select_from(q)
        .where(
            q.c.pair == pairs.c.id,
            q.c.occasion == 0,
            q.c.annotator != annotator.id,
            q.c.choice.is_(None),
            q.c.lease_until > moment,
        )
        .scalar_subquery()
    )
    overlap = project.settings.overlap
    for answers in reversed(range(overlap)):
        query = _unasked(project, annotator, moment).where(
            pairs.c.gold.is_(None), pairs.c.answers == answers, leased < overlap - answers
        )
        if (found := c.execute(query).scalar_one_or_none()) is not None:
            return int(found)
    return None


def _has_ordinary(c: sa.Connection, project: Project) -> bool:
    pairs = schema.pairs
    query = sa.select(pairs.c.id).where(pairs.c.project == project.id, pairs.c.gold.is_(None)).limit(1)
    return c.execute(query).one_or_none() is not None
