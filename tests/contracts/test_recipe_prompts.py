"""The real-model recipe's prompts: enough, short, all different, and none both trained on and held out."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for with who what how why is are was does do did you your it its and or if when most"
        " would about one that from be my their them",
    )
)


def load(name: str) -> list[str]:
    lines = (RECIPES / f"smollm2_{name}.jsonl").read_text("ascii").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(list(row) == ["prompt"] for row in rows)
    return [row["prompt"] for row in rows]


def normalized(prompt: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", prompt.lower()))


def content(prompt: str) -> frozenset[str]:
    return frozenset(normalized(prompt).split()) - SMALL_WORDS


def opening(prompt: str, words: int) -> str:
    return " ".join(normalized(prompt).split()[:words])


@pytest.mark.parametrize(("name", "least"), [("prompts", 360), ("heldout", 96)])
def test_there_are_enough_short_ascii_prompts(name, least):
    prompts = load(name)
    assert len(prompts) >= least
    for prompt in prompts:
        assert prompt == prompt.strip()
        assert prompt.isprintable()
        assert prompt[0].isupper()
        assert prompt[-1] in ".?", prompt  # a recipe may append a sentence
        assert 6 <= len(prompt.split()) <= 18, prompt
        assert "  " not in prompt
        assert "{" not in prompt


def test_none_twice_and_none_in_both():
    seen = Counter(normalized(p) for p in load("prompts") + load("heldout"))
    assert [prompt for prompt, count in seen.items() if count > 1] == []


def test_no_two_prompts_are_the_same_words_in_another_order():
    seen = Counter(content(p) for p in load("prompts") + load("heldout"))
    assert [sorted(words) for words, count in seen.items() if count > 1] == []


def test_heldout_prompts_are_not_near_copies_of_training_prompts():
    training = [content(p) for p in load("prompts")]
    for prompt in load("heldout"):
        words = content(prompt)
        closest = max(len(words & other) / len(words | other) for other in training)
        assert closest <= 0.6, (prompt, closest)


def test_frames_and_subjects_vary():
    prompts, heldout = load("prompts"), load("heldout")
    frames = Counter(opening(p, 3) for p in prompts)
    assert len(frames) >= 40
    assert max(frames.values()) <= 0.06 * len(prompts)
    rare = [word for word, count in Counter(w for p in prompts for w in content(p)).items() if count <= 2]
    assert len(rare) >= 400  # words that name a subject, not a frame
    new = [p for p in heldout if opening(p, 3) not in frames]
    assert len(new) >= 0.25 * len(heldout)
    assert len(heldout) - len(new) >= 0.25 * len(heldout)


def test_the_order_does_not_go_by_frame():
    prompts = load("prompts")
    pairs = itertools.pairwise(prompts)
    same = sum(opening(a, 3) == opening(b, 3) for a, b in pairs)
    assert same <= 0.06 * len(prompts)
