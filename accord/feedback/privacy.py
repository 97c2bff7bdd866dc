"""Forgetting a person: identity and free text are erased, votes stay."""

from __future__ import annotations

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.connect import writing
from accord.feedback.store import Store


def forget(store: Store, project: str, name: str) -> int:
    """Erases an annotator's name, token, sessions, comments, tags and demonstrations; returns how many votes stay.

    Raises UserError where there is no such annotator.
    """
    person = store.annotator(project, name)
    people, votes, demonstrations = schema.annotators, schema.votes, schema.demonstrations
    with writing(store.engine) as c:
        c.execute(sa.update(people).where(people.c.id == person.id).values(name=None, token_hash=None))
        c.execute(sa.delete(schema.sessions).where(schema.sessions.c.annotator == person.id))
        c.execute(sa.update(votes).where(votes.c.annotator == person.id).values(comment=None, tags=None))
        c.execute(sa.update(demonstrations).where(demonstrations.c.annotator == person.id).values(text=None))
        mine = sa.select(sa.func.count()).select_from(votes).where(votes.c.annotator == person.id)
        return int(c.execute(mine.where(votes.c.kind == "vote")).scalar_one())
