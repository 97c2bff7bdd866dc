"""People as the judge: their pairs, the wait, and every vote as a judgment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accord.data.samples import Candidate, Sample, read_samples
from accord.errors import UserError, Waiting
from accord.feedback.queue import next_questions
from accord.feedback.store import Annotator, ProjectSettings, Store, open_store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import cast
from accord.io.atomic import write_jsonl
from accord.stage_kinds.judges.judgment import Comparison, preference
from accord.stage_kinds.judges.matching import Matching, draw_pairs
from accord.stage_kinds.judges.people import judgment, new_pair

HOSTILE = "<script>alert(1)</script> <|im_start|>system \u202e \u2028 \x1b[31m"
Choose = Callable[[str, str], str]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ACCORD_FEEDBACK", str(tmp_path / "store" / "feedback.db"))
    return open_store()


@pytest.fixture
def samples(tmp_path: Path) -> str:
    rows = [
        Sample(
            f"prompt {i} {HOSTILE}",
            (
                Candidate("a" * (i + 1), (1, 2), "sft", "digest-1", 0.8, True, 7, 0),
                Candidate(f"b {HOSTILE}", (3,), "dpo", "digest-2", 1.0, True, 7, 0),
                Candidate("ccc", (4,), "dpo", "digest-2", 1.0, True, 7, 1),
            ),
        )
        for i in range(4)
    ]
    write_jsonl(tmp_path / "samples.jsonl", (row.as_row() for row in rows))
    return str(tmp_path / "samples.jsonl")


def values(samples: str, **changes: Any) -> dict[str, Any]:
    return {"samples": samples, "judge": "feedback://demo", "pairs": 1, "heldout_fraction": 0.0, **changes}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def prefers_b(left: str, right: str) -> str:
    """The reply that begins with b; a tie where there is none."""
    return "left" if left[0] == "b" else "right" if right[0] == "b" else "tie"


def vote(store: Store, annotator: Annotator, count: int = 1000, choose: Choose = prefers_b) -> int:
    """Answers at most ``count`` questions; returns how many there were."""
    done = 0
    while done < count and (asked := next_questions(store, annotator, 1)):
        (question,) = asked
        cast(
            store,
            annotator,
            question.id,
            choose(question.left, question.right),
            request=f"{annotator.id}-{question.id}",
        )  # type: ignore[arg-type]
        done += 1
    return done


def test_the_stage_waits_until_every_pair_has_its_votes(
    stage: Any, store: Store, samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = values(samples)
    with pytest.raises(Waiting) as waits:
        stage("judge", given)
    page = "http://127.0.0.1:8765 (accord label demo)"
    assert str(waits.value) == f"judge: waiting for 4 more votes at {page}."
    assert "added 4 pairs to project demo" in capsys.readouterr().out
    ann, _ = store.add_annotator("demo", "Ann")
    assert vote(store, ann, 3) == 3
    with pytest.raises(Waiting, match="judge: waiting for 1 more vote at"):
        stage("judge", given, resume=True)
    assert "added" not in capsys.readouterr().out
    vote(store, ann)
    outcome = stage("judge", given, resume=True)
    out = tmp_path / "out/judge"
    assert not (out / "waiting.json").exists()
    judged = rows(out / "judgments.jsonl")
    assert {row["judge"] for row in judged} == {ann.public_id}
    assert all(row["asked_with"] == pytest.approx(1 / 3) for row in judged)
    for row in judged:
        expected = {"a": row["a"]["text"][0] == "b", "b": row["b"]["text"][0] == "b"}
        assert row["choice"] == next((side for side, good in expected.items() if good), "tie")
    for row in rows(out / "preferences.jsonl"):
        assert row["chosen"] == f"b {HOSTILE}"
        assert row["prompt"].startswith("prompt ")
        assert row["prompt"].endswith(HOSTILE)
    snapshot = json.loads((out / "snapshot/snapshot.json").read_text())
    assert outcome.done["read"] == {"votes of demo": snapshot["digest"]}
    assert "snapshot" in outcome.done["outputs"]
    assert not any(b"Ann" in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_candidates_carry_the_policy_and_how_they_were_sampled(stage: Any, store: Store, samples: str) -> None:
    with pytest.raises(Waiting):
        stage("judge", values(samples))
    ann, _ = store.add_annotator("demo", "Ann")
    vote(store, ann)
    for row in read_votes(store, "demo"):
        for side in (row.a, row.b):
            assert side.policy == ("digest-1" if side.text[0] == "a" else "digest-2")
            assert side.tokens == {"a": (1, 2), "b": (3,), "c": (4,)}[side.text[0]]
            assert side.sampling["model"] == ("sft" if side.text[0] == "a" else "dpo")


def test_every_persons_vote_counts(stage: Any, store: Store, samples: str, tmp_path: Path) -> None:
    given = values(samples, people={"overlap": 2, "votes": 7}, ties="keep")
    with pytest.raises(Waiting, match="waiting for 7 more votes"):
        stage("judge", given)
    ann, bob = (store.add_annotator("demo", name)[0] for name in ("Ann", "Bob"))
    vote(store, ann)
    assert vote(store, bob, 3, lambda *_: "both_bad") == 3
    stage("judge", given, resume=True)
    judged = rows(tmp_path / "out/judge/judgments.jsonl")
    assert sorted(row["judge"] for row in judged) == sorted([ann.public_id] * 4 + [bob.public_id] * 3)
    found = rows(tmp_path / "out/judge/preferences.jsonl")
    assert [row["tie"] for row in found if "tie" in row].count("both_bad") == 3
    assert len(found) == 7


def test_a_repeat_is_a_judgment_and_makes_no_row(store: Store, samples: str) -> None:
    found = read_samples(samples)
    pair = Comparison(0, 1, 0, 0.5)
    store.create_project("demo")
    store.add_pairs("demo", [new_pair(found, Comparison(0, 0, 1, 0.25), "first")])  # the other way round
    ann, _ = store.add_annotator("demo", "Ann")
    vote(store, ann)
    (row,) = read_votes(store, "demo")
    first, again = (judgment(found, pair, replace(row, occasion=n)) for n in (0, 1))
    assert (first.choice, first.pair.asked_with, first.details["left"]) == ("a", 0.25, "b" if row.left == "a" else "a")
    assert preference(found, first, "keep") is not None
    assert again.repeat
    assert preference(found, again, "keep") is None


def test_votes_on_other_pairs_of_the_project_do_not_count(
    stage: Any, store: Store, samples: str, tmp_path: Path
) -> None:
    store.create_project("demo", ProjectSettings(repeat_share=0.0))
    with pytest.raises(Waiting):
        stage("judge", values(samples, pairs=1), "first")
    ann, _ = store.add_annotator("demo", "Ann")
    vote(store, ann)
    with pytest.raises(Waiting, match="waiting for 8 more votes"):
        stage("judge", values(samples, matching="all"), "second")
    vote(store, ann)
    stage("judge", values(samples, pairs=1), "first", resume=True)
    assert len(rows(tmp_path / "out/first/judgments.jsonl")) == 4
    stage("judge", values(samples, matching="all"), "second", resume=True)
    assert len({row["pair"] for row in rows(tmp_path / "out/second/judgments.jsonl")}) == 12


def test_more_votes_than_can_be_given_are_refused(stage: Any, store: Store, samples: str) -> None:
    with pytest.raises(UserError, match=r"people\.votes: 5, but 4 pairs with an overlap of 1 give 4 at most; lower it"):
        stage("judge", values(samples, people={"votes": 5}))


def test_a_store_that_cannot_be_read_is_named_before_a_file_is_touched(
    stage: Any, samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.db").write_text("this is no database, and it is long enough to be looked at")
    monkeypatch.setenv("ACCORD_FEEDBACK", str(tmp_path / "broken.db"))
    with pytest.raises(UserError, match=r"broken\.db"):
        stage("judge", values(samples))
    assert not (tmp_path / "out").exists()


def test_which_pairs_are_asked_depends_on_the_seed_alone(store: Store, samples: str) -> None:
    found = read_samples(samples)
    draws = [draw_pairs(found, Matching("random", 1), random.Random(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
