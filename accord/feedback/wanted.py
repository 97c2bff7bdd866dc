"""How many votes some pairs of a project still need, for a stage that waits for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from accord.feedback import schema
from accord.feedback.connect import reading
from accord.feedback.store import Store


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to some pairs of a project; skips, repeats and gold questions do not count."""

    given: int
    """At most ``overlap`` per pair."""
    possible: int
    """As many on every pair as the overlap."""

    def missing(self, wanted: int) -> int:
        """How many are still to be given; ``wanted`` 0: all that are possible."""
        return max(0, (min(wanted, self.possible) if wanted else self.possible) - self.given)


def answers_to(store: Store, project: str, digests: Iterable[str]) -> Answers:
    """The answers to the pairs with these digests.  Raises UserError where there is no such project."""
    owner, wanted = store.project(project), set(digests)
    pairs, overlap = schema.pairs, owner.settings.overlap
    query = sa.select(pairs.c.digest, pairs.c.answers).where(pairs.c.project == owner.id)
    with reading(store.engine) as c:
        given = sum(min(row.answers, overlap) for row in c.execute(query) if row.digest in wanted)
    return Answers(given, overlap * len(wanted))
