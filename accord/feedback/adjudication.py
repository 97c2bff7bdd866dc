"""Disagreements that the owner decides: a question of its own kind, apart from what annotators are asked."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import writing
from accord.feedback.entities import ADJUDICATION, Annotator, Question, Side
from accord.feedback.queue import side
from accord.feedback.shown import load_questions
from accord.feedback.store import Store


def ask_owner(store: Store, owner: Annotator, pair: int) -> tuple[Question, Side]:
    """The owner's question about a pair, and the candidate on its left; the same one again for the same pair.

    Raises UserError where the project has no such pair.
    """
    q, pairs, projects = schema.questions, schema.pairs, schema.projects
    project = store.project(owner.project)
    moment = schema.now()
    own = sa.and_(q.c.pair == pair, q.c.annotator == owner.id, q.c.occasion == ADJUDICATION)
    with writing(store.engine) as c:
        c.execute(sa.select(projects.c.id).where(projects.c.id == project.id).with_for_update(key_share=True))
        if (
            c.execute(sa.select(pairs.c.id).where(pairs.c.id == pair, pairs.c.project == project.id)).one_or_none()
            is None
        ):
            raise UserError(f"pair {pair}: not in project {project.name!r}; reload the page.")
        found = c.execute(sa.select(q.c.id, q.c.left_side).where(own)).one_or_none()
        if found is None:
            values = {
                "pair": pair,
                "annotator": owner.id,
                "occasion": ADJUDICATION,
                "left_side": side(int(owner.public_id, 16), pair, ADJUDICATION),
                "asked": moment,
                "lease_until": moment - timedelta(seconds=1),  # not one of the queue's open questions
            }
            found = c.execute(sa.insert(q).values(values).returning(q.c.id, q.c.left_side)).one()
        return load_questions(c, [found.id])[0], found.left_side
