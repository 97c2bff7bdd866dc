"""Votes are only added: corrections, undos and retries, and what a database refuses."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import schema
from accord.feedback.connect import StoreUnavailable, reading, writing
from accord.feedback.entities import Annotator, Question
from accord.feedback.queue import next_questions
from accord.feedback.store import Store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import add_demonstration, cast, history, undo
from tests.feedback.conftest import Pairs


@pytest.fixture
def ann(store: Store, make_pairs: Pairs) -> Annotator:
    store.add_pairs("tone", make_pairs(5))
    return store.add_annotator("tone", "Ann")[0]


@pytest.fixture
def question(store: Store, ann: Annotator) -> Question:
    return next_questions(store, ann, 1)[0]


def answers(store: Store) -> list[int]:
    """The summary of every pair, after comparing it with the votes."""
    rows = read_votes(store, "tone")
    with reading(store.engine) as c:
        stored = dict(c.execute(sa.select(schema.pairs.c.id, schema.pairs.c.answers)).all())  # type: ignore[arg-type]
    assert stored == {p: sum(r.pair == p and r.occasion == 0 and r.choice != "skip" for r in rows) for p in stored}
    return list(stored.values())


def test_a_vote_is_stored_by_candidate(store: Store, ann: Annotator, question: Question) -> None:
    vote = cast(store, ann, question.id, "right", request="1", strength=3, seconds=2.5, comment="why\0", tags=("rude",))
    [row] = read_votes(store, "tone")
    assert (row.a if row.choice == "a" else row.b).text == question.right
    assert (row.choice, row.strength, row.seconds, row.comment, row.tags) == (vote.choice, 3, 2.5, "why\0", ("rude",))
    assert (row.annotator, row.probability, row.source) == (ann.public_id, 0.5, "run")
    assert (row.a.tokens, row.a.policy, row.a.sampling) == ((3, 1, 2), "sha-of-a-policy", {"temperature": 0.7})
    assert vote.shown == "right"


def test_the_same_request_is_the_same_vote(store: Store, ann: Annotator, question: Question) -> None:
    first = cast(store, ann, question.id, "left", request="1", seconds=1)
    assert cast(store, ann, question.id, "left", request="1", seconds=1) == first
    assert cast(store, ann, question.id, "right", request="1") == first  # the answer of the first time stands
    assert len(history(store, ann)) == 1
    other = next_questions(store, ann, 1)[0]
    with pytest.raises(UserError, match="was used for another vote"):
        cast(store, ann, other.id, "left", request="1")


def test_a_request_is_one_annotators_own(store: Store, ann: Annotator, question: Question) -> None:
    bob, _ = store.add_annotator("tone", "Bob")
    cast(store, ann, question.id, "left", request="1")
    cast(store, bob, next_questions(store, bob, 1)[0].id, "left", request="1")
    assert len(read_votes(store, "tone")) == 2


def test_a_correction_is_a_new_row(store: Store, ann: Annotator, question: Question) -> None:
    cast(store, ann, question.id, "left", request="1")
    cast(store, ann, question.id, "skip", request="2")
    assert answers(store) == [0] * 5
    cast(store, ann, question.id, "tie", request="3")
    assert [(v.revision, v.shown) for v in history(store, ann, question.id)] == [(0, "left"), (1, "skip"), (2, "tie")]
    assert [r.choice for r in read_votes(store, "tone")] == ["tie"]
    assert sorted(answers(store)) == [0, 0, 0, 0, 1]


def test_undo_shows_the_question_again_and_goes_back_step_by_step(store: Store, ann: Annotator) -> None:
    first, second = next_questions(store, ann, 2)
    cast(store, ann, first.id, "left", request="1")
    cast(store, ann, second.id, "right", request="2")
    assert undo(store, ann, "u1").id == second.id
    assert undo(store, ann, "u1").id == second.id  # the same request again undoes nothing more
    assert [r.pair for r in read_votes(store, "tone")] == [first.pair]
    assert next_questions(store, ann, 1)[0].id == second.id
    assert undo(store, ann, "u2").id == first.id
    assert read_votes(store, "tone") == []
    assert answers(store) == [0] * 5
    with pytest.raises(UserError, match="nothing to undo"):
        undo(store, ann, "u3")
    cast(store, ann, first.id, "tie", request="3")
    assert [(v.kind, v.choice) for v in history(store, ann, first.id)][1:] == [("undo", None), ("vote", "tie")]
    with pytest.raises(UserError, match="was used for a vote"):
        undo(store, ann, "3")
    with pytest.raises(UserError, match="was used for another vote"):
        cast(store, ann, first.id, "tie", request="u1")


def test_an_undone_pair_stays_reserved(store: Store, ann: Annotator) -> None:
    bob, _ = store.add_annotator("tone", "Bob")
    asked = [next_questions(store, ann, 1)[0] for _ in range(1)]
    cast(store, ann, asked[0].id, "left", request="1")
    undo(store, ann, "u")
    assert asked[0].pair not in {q.pair for q in next_questions(store, bob, 5)}


def test_a_vote_after_the_lease_counts(store: Store, ann: Annotator, question: Question) -> None:
    from datetime import timedelta

    late = question.lease_until + timedelta(days=1)
    assert cast(store, ann, question.id, "left", request="1", now=late).created == late


def test_nobody_votes_on_a_question_of_another(store: Store, ann: Annotator, question: Question) -> None:
    bob, _ = store.add_annotator("tone", "Bob")
    for number in (question.id, 10**6, -1):
        with pytest.raises(UserError, match="was not asked of you"):
            cast(store, bob, number, "left", request="1")
        with pytest.raises(UserError, match="was not asked of you"):
            add_demonstration(store, bob, number, "better", request="1")
    assert read_votes(store, "tone") == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"choice": "a"}, "choice 'a'"),
    ({"choice": ["left"]}, "choice"),
    ({"strength": 4}, "strength 4"),
    ({"strength": True}, "strength True"),
    ({"seconds": float("nan")}, "seconds nan"),
    ({"seconds": -1}, "seconds -1"),
    ({"comment": "x" * 10_001}, "the comment has 10,001"),
    ({"tags": ("else",)}, "tag 'else'"),
    ({"tags": ("rude", "rude")}, "each once"),
    ({"request": ""}, "request"),
    ({"request": "x" * 65}, "request"),
    ({"request": "\0"}, "request"),
]


def test_values_out_of_range_are_refused(store: Store, ann: Annotator, question: Question) -> None:
    for changes, words in REFUSED:
        values = {"question_id": question.id, "choice": "left", "request": "1", **changes}
        with pytest.raises(UserError, match=words):
            cast(store, ann, **values)
    assert history(store, ann) == []


def test_a_number_that_no_database_holds_is_nobodys_question(store: Store, ann: Annotator) -> None:
    with pytest.raises(UserError, match="was not asked of you"):
        cast(store, ann, 10**30, "left", request="1")


def test_a_demonstration_is_stored_once_per_request(store: Store, ann: Annotator, question: Question) -> None:
    first = add_demonstration(store, ann, question.id, "better\0", request="1")
    assert add_demonstration(store, ann, question.id, "other", request="1") == first
    with reading(store.engine) as c:
        assert c.execute(sa.select(schema.demonstrations.c.text)).scalars().all() == ["better\0"]
    with pytest.raises(UserError, match="empty"):
        add_demonstration(store, ann, question.id, " \n", request="2")
    with pytest.raises(UserError, match="at most"):
        add_demonstration(store, ann, question.id, "x" * 200_001, request="2")


CHANGES = [
    "UPDATE votes SET choice = 'b'",
    "UPDATE votes SET seconds = 0, comment = NULL",
    "UPDATE votes SET comment = '\"other\"'",
    "UPDATE votes SET created = '2020-01-01'",
    "DELETE FROM votes",
    "UPDATE demonstrations SET text = '\"other\"'",
    "DELETE FROM demonstrations",
]


def test_the_database_refuses_to_change_what_was_stated(store: Store, ann: Annotator, question: Question) -> None:
    cast(store, ann, question.id, "left", request="1", seconds=3, comment="why")
    add_demonstration(store, ann, question.id, "better", request="1")
    before = read_votes(store, "tone")
    for statement in [*CHANGES, *["TRUNCATE votes"] * (store.engine.dialect.name == "postgresql")]:
        with pytest.raises((StoreUnavailable, sa.exc.IntegrityError), match="append-only"), writing(store.engine) as c:
            c.exec_driver_sql(statement)
    assert read_votes(store, "tone") == before
