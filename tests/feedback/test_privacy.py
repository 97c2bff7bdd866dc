"""Forgetting erases a person and what they wrote, and keeps their votes."""

from __future__ import annotations

import pytest

from accord.errors import UserError
from accord.feedback.privacy import forget
from accord.feedback.queue import next_questions
from accord.feedback.store import Store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import add_demonstration, cast
from tests.feedback.conftest import Pairs
from tests.feedback.test_store import contents


def test_a_forgotten_person_leaves_only_votes(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(2))
    cookies, tokens = {}, {}
    for name in ("Ann", "Bob"):
        annotator, tokens[name] = store.add_annotator("tone", name)
        cookies[name] = store.start_session(annotator)
        question = next_questions(store, annotator, 1)[0]
        cast(store, annotator, question.id, "left", request="1", comment=f"{name}'s comment", tags=("rude",))
        cast(store, annotator, question.id, "right", request="2", comment=f"{name}'s correction")
        add_demonstration(store, annotator, question.id, f"{name}'s answer", request="3")
    before = read_votes(store, "tone")
    assert forget(store, "tone", "Ann") == 2
    everything = contents(store)
    assert "Ann" not in everything
    assert everything.count("Bob's") == 3
    assert store.authenticate(tokens["Ann"]) is None
    assert store.session(cookies["Ann"]) is None
    assert store.session(cookies["Bob"]) is not None
    after = read_votes(store, "tone")
    assert [(v.pair, v.choice, v.annotator) for v in after] == [(v.pair, v.choice, v.annotator) for v in before]
    assert [v.comment for v in after] == ["", "Bob's correction"]
    with pytest.raises(UserError, match="annotator 'Ann': not in project"):
        forget(store, "tone", "Ann")
    again, _ = store.add_annotator("tone", "Ann")  # another person of that name
    assert again.public_id not in {v.annotator for v in after}
