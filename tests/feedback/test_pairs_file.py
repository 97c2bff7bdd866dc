"""Pairs from files of sampled replies and of preferences."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.feedback.pairs_file import read_pairs


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_sampled_replies_are_paired_at_random_with_the_chance_of_each_pair(tmp_path: Path) -> None:
    replies = [
        {"text": t, "tokens": [1, i], "digest": "d" * 8, "temperature": 0.5, "seed": 3, "sample": i}
        for i, t in enumerate("abcd")
    ]
    unusable = [{"text": "a"}, {"text": "cut off", "ended": False}, {"text": " "}]
    write(tmp_path / "samples.jsonl", *({"prompt": f"q{i}", "candidates": replies + unusable} for i in range(60)))
    pairs = read_pairs(tmp_path, 1, 0, False)
    assert len(pairs) == 60
    assert {p.probability for p in pairs} == {1 / 6}
    assert len(Counter(frozenset((p.a.text, p.b.text)) for p in pairs)) == 6
    assert pairs[0].prompt == ({"role": "user", "content": "q0"},)
    one = next(c for p in pairs for c in (p.a, p.b) if c.text == "b")
    assert (one.tokens, one.policy) == ((1, 1), "d" * 8)
    assert one.sampling == {"model": "", "temperature": 0.5, "seed": 3, "sample": 1}
    assert read_pairs(tmp_path, 1, 0, False) == pairs != read_pairs(tmp_path, 1, 1, False)
    both = read_pairs(tmp_path, 9, 0, False)
    assert len(both) == 120
    assert {p.probability for p in both} == {2 / 6}


def test_preferences_are_asked_in_an_order_that_says_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *({"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(40)))
    pairs = read_pairs(path, 1, 0, False)
    assert {p.gold for p in pairs} == {None}
    assert 8 < sum(p.a.text == "good" for p in pairs) < 32
    gold = read_pairs(path, 1, 0, True)
    assert all((p.a if p.gold == "a" else p.b).text == "good" for p in gold)
    assert {p.gold for p in gold} == {"a", "b"}


@pytest.mark.parametrize(
    ("rows", "gold", "words"),
    [
        ([{"prompt": "q"}], False, "row 1: expected 'candidates', or 'chosen' and 'rejected'"),
        ([{"prompt": "q", "candidates": [{"text": "a"}, {"text": "a"}]}], False, "no prompt has two different replies"),
        ([{"prompt": "q", "candidates": [{"text": "a"}, {"text": "b"}]}], True, "--gold needs rows with chosen"),
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}], False, "row 1: 'chosen' and 'rejected' are the same"),
        (
            [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a"}],
            False,
            "row 2: no 'rejected'",
        ),
    ],
)
def test_a_file_without_pairs_is_one_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], gold: bool, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read_pairs(write(tmp_path / "f.jsonl", *rows), 1, 0, gold)


def test_a_folder_without_samples_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no samples\.jsonl"):
        read_pairs(tmp_path, 1, 0, False)


TOOLS = [{"type": "function", "function": {"name": "look"}}]


def test_a_prompt_keeps_its_tools_and_replies_the_tokenizer_of_their_ids(tmp_path: Path) -> None:
    replies = [{"text": text, "tokens": [1, i], "tokenizer": "t" * 32} for i, text in enumerate("ab")]
    asked = {"prompt": "q", "tools": TOOLS, "chat_template_kwargs": {"thinking": False}}
    write(tmp_path / "samples.jsonl", {**asked, "candidates": replies})
    (pair,) = read_pairs(tmp_path, 1, 0, False)
    assert pair.inputs == {"tools": TOOLS, "thinking": False}
    assert pair.a.sampling["tokenizer"] == "t" * 32
    path = write(tmp_path / "p.jsonl", {**asked, "chosen": "good", "rejected": "bad"})
    assert read_pairs(path, 1, 0, False)[0].inputs == pair.inputs
