"""How many votes are missing on some pairs of a project."""

from __future__ import annotations

from typing import Any

from accord.feedback.entities import ProjectSettings
from accord.feedback.queue import next_questions
from accord.feedback.store import Store, digest_of
from accord.feedback.votes import cast, undo
from accord.feedback.wanted import Answers, answers_to


def test_answers_count_up_to_the_overlap_and_skips_do_not(store: Store, make_pairs: Any) -> None:
    pairs = make_pairs(3)
    store.add_pairs("tone", pairs)
    digests = [digest_of(pair) for pair in pairs]
    assert answers_to(store, "tone", digests) == Answers(0, 3)
    ann, _ = store.add_annotator("tone", "Ann")
    for number, choice in enumerate(("left", "tie", "skip")):
        (question,) = next_questions(store, ann, 1)
        cast(store, ann, question.id, choice, request=str(number))  # type: ignore[arg-type]
    assert answers_to(store, "tone", digests) == Answers(2, 3)
    assert answers_to(store, "tone", digests[:1]) == Answers(1, 1)
    undo(store, ann, "back")  # of the skip
    undo(store, ann, "further back")
    assert answers_to(store, "tone", digests) == Answers(1, 3)
    store.change_project("tone", ProjectSettings(overlap=2))
    assert answers_to(store, "tone", digests) == Answers(1, 6)


def test_votes_beyond_the_overlap_do_not_make_up_for_pairs_without_any(store: Store, make_pairs: Any) -> None:
    pairs = make_pairs(2)
    store.add_pairs("tone", pairs)
    store.change_project("tone", ProjectSettings(overlap=2))
    for name in ("Ann", "Bob"):
        ann, _ = store.add_annotator("tone", name)
        (question,) = next_questions(store, ann, 1)
        cast(store, ann, question.id, "left", request=name)
    store.change_project("tone", ProjectSettings(overlap=1))
    assert answers_to(store, "tone", map(digest_of, pairs)) == Answers(1, 2)


def test_what_is_missing_is_what_is_wanted_or_possible() -> None:
    answers = Answers(given=3, possible=10)
    assert [answers.missing(wanted) for wanted in (0, 10, 5, 3, 1, 99)] == [7, 7, 2, 0, 0, 7]


def test_a_pair_has_one_digest_whichever_reply_comes_first(make_pairs: Any) -> None:
    from dataclasses import replace

    (pair,) = make_pairs(1)
    assert digest_of(pair) == digest_of(replace(pair, a=pair.b, b=pair.a, probability=0.1, source="x"))
    assert digest_of(pair) != digest_of(make_pairs(1, first=1)[0])
