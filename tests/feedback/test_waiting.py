"""What a stage waits for, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.feedback.waiting import WAITING, wait_in_words, waiting_in_words
from accord.io.atomic import write_json


def test_one_vote_is_not_votes() -> None:
    assert wait_in_words(1, "demo", "http://h") == "waiting for 1 more vote at http://h (accord label demo)"
    assert wait_in_words(1200, "demo", "http://h") == "waiting for 1,200 more votes at http://h (accord label demo)"


def test_without_a_store_the_record_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCORD_FEEDBACK", str(tmp_path / "no.db"))
    record = {"key": "k", "project": "demo", "missing": 7, "votes": 0, "pairs": ["d"], "page": "http://h"}
    write_json(tmp_path / WAITING, record)
    assert waiting_in_words(tmp_path, "k") == "waiting for 7 more votes at http://h (accord label demo)"
    assert waiting_in_words(tmp_path, "another") == ""
    (tmp_path / WAITING).write_text("{")
    assert waiting_in_words(tmp_path, "k") == ""
    assert not (tmp_path / "no.db").exists()
