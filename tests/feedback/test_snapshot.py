"""Snapshots have the same bytes for the same votes, at any time, and no names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from accord.data.rows import Where, preference_fields
from accord.errors import UserError
from accord.feedback.convert import raw
from accord.feedback.convert.pairs import PairOptions
from accord.feedback.convert.store_votes import import_votes
from accord.feedback.entities import Annotator
from accord.feedback.queue import next_questions
from accord.feedback.snapshot import PREFERENCES, RECORD, VOTES, take_snapshot
from accord.feedback.store import ProjectSettings, Store, open_store
from accord.feedback.vote_rows import read_votes
from accord.feedback.votes import cast, undo
from accord.io.readers import read_jsonl
from tests.feedback.conftest import Pairs

START = datetime(2026, 3, 1, tzinfo=timezone.utc)


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


@pytest.fixture
def ann(store: Store, make_pairs: Pairs) -> Annotator:
    """Who votes at minute 1, corrects at 2, votes again at 3, and undoes at 4."""
    store.add_pairs("tone", make_pairs(3))
    annotator, _ = store.add_annotator("tone", "Ann Secret")
    first, second = next_questions(store, annotator, 2, START)
    cast(
        store, annotator, first.id, "left", request="1", seconds=2, comment="private \u2028", tags=("rude",), now=at(1)
    )
    cast(store, annotator, first.id, "tie", request="2", now=at(2))
    cast(store, annotator, second.id, "skip", request="3", now=at(3))
    undo(store, annotator, "4", now=at(4))
    return annotator


def test_votes_are_those_that_were_current_at_the_moment(store: Store, ann: Annotator) -> None:
    choices = [[row.choice for row in read_votes(store, "tone", at(minutes))] for minutes in range(5)]
    assert choices[0] == []
    assert choices[1] in (["a"], ["b"])
    assert choices[2:] == [["tie"], ["tie", "skip"], ["tie"]]
    assert [row.choice for row in read_votes(store, "tone")] == ["tie"]


def test_the_same_votes_are_the_same_bytes(store: Store, ann: Annotator, tmp_path: Path) -> None:
    first = take_snapshot(store, "tone", tmp_path / "a", at(3))
    cast(store, ann, next_questions(store, ann, 1, at(5))[0].id, "left", request="5", now=at(5))
    later = take_snapshot(store, "tone", tmp_path / "b", at(3))
    assert first.digest == later.digest
    assert (tmp_path / "a" / VOTES).read_bytes() == (tmp_path / "b" / VOTES).read_bytes()
    assert take_snapshot(store, "tone", tmp_path / "a", at(5)).digest != first.digest  # replaced
    record = json.loads((tmp_path / "b" / RECORD).read_text())
    content = (tmp_path / "b" / VOTES).read_bytes()
    assert record == {
        "project": "tone",
        "until": "2026-03-01T00:03:00+00:00",
        "votes": 2,
        "choices": {"skip": 1, "tie": 1},
        "annotators": 1,
        "pairs": 2,
        "digest": hashlib.sha256(content).hexdigest(),
    }


def test_rows_hold_what_was_shown_and_no_name_or_comment(store: Store, ann: Annotator, tmp_path: Path) -> None:
    take_snapshot(store, "tone", tmp_path / "a", at(1))
    [(_, row)] = read_jsonl(tmp_path / "a" / VOTES)
    texts = {row["a"]["text"], row["b"]["text"]}
    assert texts == {"yes 0", "no 0"}
    assert row["prompt"] == [{"role": "user", "content": "question 0"}]
    assert (row["annotator"], row["left"], row["choice"]) == (ann.public_id, row["choice"], row["left"])
    assert (row["probability"], row["seconds"], row["a"]["tokens"]) == (0.5, 2.0, [3, 1, 2])
    everything = "".join(p.read_text() for p in (tmp_path / "a").iterdir())
    assert "Secret" not in everything
    assert "private" not in everything
    assert "comment" not in row
    take_snapshot(store, "tone", tmp_path / "b", at(1), comments=True)
    [(_, row)] = read_jsonl(tmp_path / "b" / VOTES)
    assert (row["comment"], row["tags"]) == ("private \u2028", ["rude"])


def test_a_folder_with_something_else_is_not_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="is not a snapshot"):
            take_snapshot(store, "tone", folder)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_preferences_of_a_snapshot_are_what_stages_train_on(
    store: Store, make_pairs: Pairs, tmp_path: Path
) -> None:
    store.add_pairs("tone", make_pairs(4))
    annotator, _ = store.add_annotator("tone", "Ann")
    for number, choice in enumerate(("left", "right", "tie", "skip")):
        cast(store, annotator, next_questions(store, annotator, 1)[0].id, choice, request=str(number))  # type: ignore[arg-type]
    preferred = [(row.a if row.choice == "a" else row.b).text for row in read_votes(store, "tone")[:2]]
    taken = take_snapshot(store, "tone", tmp_path / "votes", pairs=PairOptions())
    assert (taken.votes, taken.preferences, taken.left_out) == (4, 2, {"ties": 1, "skipped": 1})
    rows = [preference_fields(row, Where("f", n)) for n, row in read_jsonl(tmp_path / "votes" / PREFERENCES)]
    assert [row[1] for row in rows] == preferred
    assert json.loads((tmp_path / "votes" / RECORD).read_text())["preferences"]["left_out"] == {"skipped": 1, "ties": 1}
    half = take_snapshot(store, "tone", tmp_path / "votes", pairs=PairOptions("half"))
    labels = [row.get("label", 1) for _, row in read_jsonl(tmp_path / "votes" / PREFERENCES)]
    assert (half.preferences, labels, half.digest) == (3, [1, 1, 0.5], taken.digest)


def test_tools_and_sampled_ids_come_back_from_the_store(store: Store, make_pairs: Pairs, tmp_path: Path) -> None:
    inputs = {"tools": [{"type": "function", "function": {"name": "look"}}], "thinking": False}
    (plain,) = make_pairs(1)
    a, b = (replace(side, sampling={**side.sampling, "tokenizer": "t" * 32}) for side in (plain.a, plain.b))
    asked = replace(plain, a=a, b=b, inputs=inputs)
    assert store.add_pairs("tone", [asked, plain]) == 2, "the same messages with and without tools are two prompts"
    assert store.add_pairs("tone", [replace(plain, a=a, b=b)]) == 0, (
        "a pair asked before digests were stored is the same"
    )
    annotator, _ = store.add_annotator("tone", "Ann")
    for number in range(2):
        cast(store, annotator, next_questions(store, annotator, 1)[0].id, "left", request=str(number))
    take_snapshot(store, "tone", tmp_path / "votes", pairs=PairOptions())
    rows = [row for _, row in read_jsonl(tmp_path / "votes" / PREFERENCES)]
    (with_tools,) = (row for row in rows if "tools" in row)
    assert with_tools["tools"] == inputs["tools"]
    assert with_tools["chat_template_kwargs"] == {"thinking": False}
    assert with_tools["tokens"] == {"tokenizer": "t" * 32, "chosen": [3, 1, 2], "rejected": [3, 1, 2]}
    (bare,) = (row for row in rows if "tools" not in row)
    assert bare.keys() == {"prompt", "chosen", "rejected"}
    assert preference_fields(with_tools, Where("f", 1))[0].inputs == inputs  # type: ignore[union-attr]
    votes = [row for _, row in read_jsonl(tmp_path / "votes" / VOTES)]
    assert [vote.get("tools") for vote in votes].count(inputs["tools"]) == 1
    other = open_store(tmp_path / "other.db")
    other.create_project("copy", ProjectSettings())
    import_votes(other, "copy", list(raw.read((Where("f", n), vote) for n, vote in enumerate(votes))))  # type: ignore[arg-type]
    copied = [row.inputs for row in read_votes(other, "copy")]
    assert len(copied) == 2
    assert inputs in copied
    assert {} in copied
