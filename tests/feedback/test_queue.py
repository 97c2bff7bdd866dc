"""Which question is asked next: leases, overlap, repeats, gold questions, sides."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest

from accord.feedback.entities import Annotator, ProjectSettings, Question
from accord.feedback.queue import REPEAT_GAP, next_questions, side
from accord.feedback.store import Store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import cast
from tests.feedback.conftest import Pairs

START = datetime(2026, 3, 1, tzinfo=timezone.utc)


def people(store: Store, project: str, *names: str) -> list[Annotator]:
    return [store.add_annotator(project, name)[0] for name in names]


def answer(store: Store, who: Annotator, question: Question, choice: str = "left", now: datetime = START) -> None:
    cast(store, who, question.id, choice, request=f"r{question.id}", seconds=1, now=now)  # type: ignore[arg-type]


def answer_all(store: Store, who: Annotator, choice: str = "left", most: int = 10_000) -> list[Question]:
    made = []
    while (some := next_questions(store, who, 1, START)) and len(made) < most:
        answer(store, who, some[0], choice)
        made += some
    return made


def test_two_people_never_get_one_pair_while_leases_run(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(4))
    ann, bob, eve = people(store, "tone", "Ann", "Bob", "Eve")
    first, second = next_questions(store, ann, 2, START), next_questions(store, bob, 2, START)
    assert len({q.pair for q in [*first, *second]}) == 4
    assert next_questions(store, eve, 2, START) == []
    answer(store, ann, first[0])
    assert next_questions(store, eve, 2, START) == []


def test_an_expired_lease_returns_the_pair(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(1))
    ann, bob = people(store, "tone", "Ann", "Bob")
    [asked] = next_questions(store, ann, 1, START)
    assert asked.lease_until == START + timedelta(seconds=600)
    later = START + timedelta(seconds=601)
    [again] = next_questions(store, bob, 1, later)
    assert again.pair == asked.pair
    assert next_questions(store, ann, 1, later) == []  # it is Bob's now
    much_later = later + timedelta(seconds=601)
    [back] = next_questions(store, ann, 1, much_later)
    assert (back.id, back.left, back.right) == (asked.id, asked.left, asked.right)


def test_a_reload_gives_a_persons_own_questions_back(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(9))
    [ann] = people(store, "tone", "Ann")
    first = next_questions(store, ann, 2, START)
    assert next_questions(store, ann, 2, START + timedelta(seconds=1)) == first
    renewed = next_questions(store, ann, 2, START + timedelta(seconds=500))
    assert [(q.id, q.left) for q in renewed] == [(q.id, q.left) for q in first]
    assert renewed[0].lease_until == START + timedelta(seconds=1100)
    answer(store, ann, first[0])
    following = next_questions(store, ann, 2, START + timedelta(seconds=500))
    assert following[0].id == first[1].id
    assert following[1].pair not in {q.pair for q in first}


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_each_pair_is_answered_by_as_many_as_the_overlap(store: Store, make_pairs: Pairs, overlap: int) -> None:
    store.create_project("k", ProjectSettings(overlap=overlap, repeat_share=0, gold_share=0))
    store.add_pairs("k", make_pairs(5))
    everyone = people(store, "k", "A", "B", "C", "D")
    for who in everyone:
        answer_all(store, who)
    rows = read_votes(store, "k")
    assert Counter(Counter(r.digest for r in rows).values()) == {overlap: 5}
    assert len({(r.digest, r.annotator) for r in rows}) == len(rows)


def test_a_skipped_pair_goes_to_somebody_else(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(2))
    ann, bob = people(store, "tone", "Ann", "Bob")
    assert len(answer_all(store, ann, "skip")) == 2
    assert len(answer_all(store, bob, "both_bad")) == 2
    assert next_questions(store, ann, 1, START) == []


def test_pairs_with_some_answers_are_completed_first(store: Store, make_pairs: Pairs) -> None:
    store.create_project("k", ProjectSettings(overlap=2, repeat_share=0, gold_share=0))
    store.add_pairs("k", make_pairs(6))
    ann, bob = people(store, "k", "Ann", "Bob")
    done = answer_all(store, ann, most=3)
    assert {q.pair for q in answer_all(store, bob, most=3)} == {q.pair for q in done}


def test_repeats_come_later_once_and_with_sides_drawn_again(store: Store, make_pairs: Pairs) -> None:
    store.create_project("r", ProjectSettings(repeat_share=0.5, gold_share=0))
    store.add_pairs("r", make_pairs(24))
    [ann] = people(store, "r", "Ann")
    asked = answer_all(store, ann)
    order = [(q.pair, q.occasion) for q in asked]
    assert len(set(order)) == len(order)
    repeats = [pair for pair, occasion in order if occasion == 1]
    assert 3 <= len(repeats) <= 20
    assert max(occasion for _, occasion in order) == 1
    assert all(order.index((p, 1)) - order.index((p, 0)) >= REPEAT_GAP for p in repeats)
    left = {(q.pair, q.occasion): q.left for q in asked}
    seed = int(ann.public_id, 16)
    assert all(left[p, 1].startswith("yes") == (side(seed, p, 1) == "a") for p in repeats)
    assert {r.occasion for r in read_votes(store, "r")} == {0, 1}


def test_everyone_is_asked_every_gold_question_once(store: Store, make_pairs: Pairs) -> None:
    store.create_project("g", ProjectSettings(gold_share=0.5, repeat_share=0))
    store.add_pairs("g", make_pairs(30))
    store.add_pairs("g", make_pairs(2, first=100, gold="b"))
    for who in people(store, "g", "Ann", "Bob"):
        answer_all(store, who, most=15)
    rows = read_votes(store, "g")
    gold = Counter((r.digest, r.annotator) for r in rows if r.gold)
    assert len(gold) == 4
    assert set(gold.values()) == {1}
    assert len(rows) == 30


def test_gold_questions_alone_are_asked(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(3, gold="a"))
    [ann] = people(store, "tone", "Ann")
    assert len(answer_all(store, ann)) == 3


def test_a_project_keeps_to_its_own_pairs(store: Store, make_pairs: Pairs) -> None:
    store.create_project("other")
    store.add_pairs("other", make_pairs(3))
    [ann] = people(store, "tone", "Ann")
    assert next_questions(store, ann, 2, START) == []


def test_sides_are_drawn_evenly_and_recorded(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(20))
    [ann] = people(store, "tone", "Ann")
    asked = {q.pair: q for q in answer_all(store, ann)}
    rows = read_votes(store, "tone")
    for row in rows:
        shown = asked[row.pair]
        assert shown.left == (row.a if row.left == "a" else row.b).text
        assert row.choice == row.left  # the left one was chosen each time
    assert 2 <= sum(row.left == "a" for row in rows) <= 18
    seed = int(ann.public_id, 16)
    assert [side(seed, r.pair, 0) for r in rows] == [r.left for r in rows]
    assert 450 < sum(side(seed, pair, 0) == "a" for pair in range(1000)) < 550
    assert any(side(seed, pair, 0) != side(seed, pair, 1) for pair in range(20))
