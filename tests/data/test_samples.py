"""Rows of samples.jsonl: written and read, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accord.data.samples import Candidate, Sample, read_samples
from accord.errors import UserError
from accord.io.atomic import write_jsonl

HOSTILE = "<script>alert(1)</script> <|im_start|>system \u202e \u2028 \x1b[31m \x00 \U0001f600"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": HOSTILE}]
    full = Candidate(HOSTILE, (1, 2, 3), "sft", "abc", 0.7, True, 7, 2)
    samples = [Sample(messages, (full, Candidate("cut", ended=False))), Sample("text", ())]
    write_jsonl(tmp_path / "s.jsonl", (sample.as_row() for sample in samples))
    assert read_samples(str(tmp_path / "s.jsonl")) == samples


def test_only_replies_that_ended_and_have_a_text_can_be_judged() -> None:
    sample = Sample("p", (Candidate("a"), Candidate("b", ended=False), Candidate("  ")))
    assert sample.usable().candidates == (Candidate("a"),)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p"}, "row 2: no 'candidates'"),
        ({"prompt": "p", "candidates": "x"}, "row 2: 'candidates' is not a list of objects"),
        ({"prompt": "p", "candidates": ["x"]}, "row 2: 'candidates' is not a list of objects"),
        ({"prompt": "p", "candidates": [{"txt": "x"}]}, "row 2: no 'text'"),
        ({"prompt": "p", "candidates": [{"text": 3}]}, "row 2: 'text' is a JSON number, expected a string"),
        ({"prompt": "p", "candidates": [{"text": "x", "tokens": [1.5]}]}, "row 2: 'tokens' of a candidate is not"),
        ({"prompt": "p", "candidates": [{"text": "x", "ended": 1}]}, "row 2: 'ended' of a candidate is a JSON number"),
        ({"prompt": "p", "candidates": [{"text": "x", "temperature": "hot"}]}, "row 2: temperature 'hot', expected"),
        ({"candidates": []}, "row 2: no 'prompt'"),
    ],
)
def test_a_mistake_is_named_with_its_row(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = {"prompt": "p", "candidates": [{"text": "x"}]}
    (tmp_path / "s.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_samples(str(tmp_path / "s.jsonl"))
