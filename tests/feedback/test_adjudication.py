"""A pair that the owner decides is apart from what annotators are asked."""

from __future__ import annotations

import pytest

from accord.errors import UserError
from accord.feedback.adjudication import ADJUDICATION, ask_owner
from accord.feedback.progress import coverage
from accord.feedback.queue import next_questions
from accord.feedback.store import Store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import cast
from tests.feedback.conftest import Pairs


def test_a_decision_counts_for_no_overlap_and_leases_nothing(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(2))
    ann, owner = store.add_annotator("tone", "ann")[0], store.add_annotator("tone", "boss", "owner")[0]
    first, _ = next_questions(store, ann)
    question, left = ask_owner(store, owner, first.pair)
    assert (question.pair, question.occasion) == (first.pair, ADJUDICATION)
    assert ask_owner(store, owner, first.pair)[0].id == question.id
    cast(store, owner, question.id, "left", request="decision")
    assert coverage(store, "tone").votes == 0
    cast(store, ann, first.id, "tie", request="vote")
    assert coverage(store, "tone").votes == 1
    assert [(row.choice, row.occasion) for row in read_votes(store, "tone")] == [(left, ADJUDICATION), ("tie", 0)]
    assert question.id not in [q.id for q in next_questions(store, owner)]


def test_an_unknown_pair_is_one_sentence(store: Store) -> None:
    owner = store.add_annotator("tone", "boss", "owner")[0]
    with pytest.raises(UserError, match=r"pair 7: not in project .tone.; reload the page\."):
        ask_owner(store, owner, 7)
