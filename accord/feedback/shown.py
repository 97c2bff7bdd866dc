"""Questions as an annotator sees them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.entities import Question


def load_questions(c: sa.Connection, ids: Sequence[int]) -> list[Question]:
    """Questions in the order of ``ids``, with their texts on the recorded sides."""
    questions, pairs, prompts = schema.questions, schema.pairs, schema.prompts
    a, b = schema.candidates.alias("first"), schema.candidates.alias("second")
    query = (
        sa.select(questions, prompts.c.messages, a.c.text.label("text_a"), b.c.text.label("text_b"))
        .join(pairs, pairs.c.id == questions.c.pair)
        .join(prompts, prompts.c.id == pairs.c.prompt)
        .join(a, a.c.id == pairs.c.a)
        .join(b, b.c.id == pairs.c.b)
        .where(questions.c.id.in_(ids))
    )
    found = {}
    for row in c.execute(query):
        texts = (row.text_a, row.text_b) if row.left_side == "a" else (row.text_b, row.text_a)
        found[row.id] = Question(row.id, row.pair, row.occasion, row.messages, *texts, row.lease_until)
    return [found[i] for i in ids]
