"""How far an annotator and a project have come."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.connect import reading
from accord.feedback.entities import ANSWERS, Annotator
from accord.feedback.store import Store

DAY = timedelta(days=1)
PACE = 50
"""Newest votes of which the pace is the median."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What an annotator sees of their own work."""

    done: int
    left: int
    """Pairs that they could still be asked."""
    today: int
    """Votes of the last 24 hours."""
    pace_seconds: float | None
    self_agreement: float | None
    """Share of repeats answered as the first time; None before the first one."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many votes a project has and still needs; gold questions and repeats do not count."""

    pairs: int
    votes: int
    missing: int
    """Votes until each pair has as many as the overlap."""


def progress(store: Store, annotator: Annotator, now: datetime | None = None) -> Progress:
    """An annotator's progress."""
    project = store.project(annotator.project)
    q, pairs, votes = schema.questions, schema.pairs, schema.votes
    mine = q.c.annotator == annotator.id
    decided = sa.and_(mine, q.c.choice.is_not(None))
    lacking = sa.and_(
        pairs.c.project == project.id, pairs.c.gold.is_(None), pairs.c.answers < project.settings.overlap
    )  # fmt: skip
    by_me = sa.select(_count()).join(pairs, pairs.c.id == q.c.pair).where(decided, q.c.occasion == 0, lacking)
    newer = votes.alias()
    newest = sa.select(sa.func.max(newer.c.revision)).where(newer.c.question == q.c.id).scalar_subquery()
    standing = votes.join(q, sa.and_(q.c.id == votes.c.question, votes.c.revision == newest))
    own = sa.and_(votes.c.annotator == annotator.id, votes.c.kind == "vote")
    today = sa.select(_count()).select_from(standing).where(own, votes.c.created > (now or schema.now()) - DAY)
    pace = sa.select(votes.c.seconds).select_from(standing).where(own).order_by(votes.c.created.desc()).limit(PACE)
    first = q.alias()
    repeats = (
        sa.select(q.c.choice, first.c.choice)
        .join(first, sa.and_(first.c.pair == q.c.pair, first.c.annotator == q.c.annotator, first.c.occasion == 0))
        .where(mine, q.c.occasion > 0, q.c.choice.in_(ANSWERS), first.c.choice.in_(ANSWERS))
    )
    with reading(store.engine) as c:
        done, recent = c.execute(sa.select(_count()).where(decided)).scalar_one(), c.execute(today).scalar_one()
        left = c.execute(sa.select(_count()).select_from(pairs).where(lacking)).scalar_one()
        left -= c.execute(by_me).scalar_one()
        seconds, answers = c.execute(pace).scalars().all(), c.execute(repeats).all()
    return Progress(
        done=int(done),
        left=int(left),
        today=int(recent),
        pace_seconds=statistics.median(seconds) if seconds else None,
        self_agreement=statistics.fmean(a == b for a, b in answers) if answers else None,
    )


def _count() -> sa.ColumnElement[int]:
    return sa.func.count()


def coverage(store: Store, project: str) -> Coverage:
    """How many votes a project has and still needs."""
    owner = store.project(project)
    pairs, overlap = schema.pairs, owner.settings.overlap
    missing = sa.case((pairs.c.answers < overlap, overlap - pairs.c.answers), else_=0)
    query = sa.select(sa.func.count(), sa.func.sum(pairs.c.answers), sa.func.sum(missing)).where(
        pairs.c.project == owner.id, pairs.c.gold.is_(None)
    )
    with reading(store.engine) as c:
        count, votes, lacking = c.execute(query).one()
    return Coverage(int(count), int(votes or 0), int(lacking or 0))
