"""How far an annotator and a project have come."""

from __future__ import annotations

from datetime import timedelta

from accord.feedback import schema
from accord.feedback.entities import ProjectSettings
from accord.feedback.progress import Coverage, coverage, progress
from accord.feedback.queue import next_questions
from accord.feedback.store import Store
from accord.feedback.votes import cast, undo
from tests.feedback.conftest import Pairs


def test_progress_counts_standing_votes(store: Store, make_pairs: Pairs) -> None:
    store.add_pairs("tone", make_pairs(5))
    ann, _ = store.add_annotator("tone", "Ann")
    assert (progress(store, ann).done, progress(store, ann).left, progress(store, ann).pace_seconds) == (0, 5, None)
    yesterday = schema.now() - timedelta(hours=30)
    for number, question in enumerate(next_questions(store, ann, 4)):
        moment = yesterday if number == 0 else schema.now()
        choice = "skip" if number == 1 else "left"
        cast(store, ann, question.id, choice, request=str(number), seconds=number * number, now=moment)  # type: ignore[arg-type]
    found = progress(store, ann)
    assert (found.done, found.left, found.today, found.pace_seconds, found.self_agreement) == (4, 1, 3, 2.5, None)
    undo(store, ann, "u")
    assert (progress(store, ann).done, progress(store, ann).left) == (3, 2)


def test_agreement_with_self_is_by_candidate_not_by_side(store: Store, make_pairs: Pairs) -> None:
    store.create_project("r", ProjectSettings(repeat_share=0.5, gold_share=0))
    store.add_pairs("r", make_pairs(20))
    ann, _ = store.add_annotator("r", "Ann")
    seen: dict[int, bool] = {}
    same = repeats = 0
    while some := next_questions(store, ann, 1):
        question = some[0]
        repeats += question.occasion
        yes = question.left.startswith("yes")  # says yes, except in every other repeat
        wanted = not (question.occasion and repeats % 2)
        same += question.occasion and wanted == seen[question.pair]
        seen.setdefault(question.pair, wanted)
        cast(store, ann, question.id, "left" if yes == wanted else "right", request=str(question.id), seconds=1)
    assert repeats > 1
    assert progress(store, ann).self_agreement == same / repeats


def test_coverage_says_how_many_votes_are_missing(store: Store, make_pairs: Pairs) -> None:
    store.create_project("k", ProjectSettings(overlap=2, repeat_share=0, gold_share=0))
    assert coverage(store, "k") == Coverage(0, 0, 0)
    store.add_pairs("k", [*make_pairs(3), *make_pairs(2, first=9, gold="a")])
    for name in ("Ann", "Bob"):
        annotator, _ = store.add_annotator("k", name)
        first, second = next_questions(store, annotator, 2)
        cast(store, annotator, first.id, "left", request="1")
        cast(store, annotator, second.id, "skip", request="2")
    assert coverage(store, "k") == Coverage(3, 2, 4)
