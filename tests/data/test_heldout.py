"""The held-out split: by prompt, the same for every file, and moved by nothing but the seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.heldout import is_heldout, split_by_prompt
from accord.data.preferences import PairLengths, load_preferences
from accord.data.prompts import load_prompts
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Rows = Callable[..., Path]
PROMPTS = [f"number {i}" for i in range(4000)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_prompts_is_the_fraction(fraction: float) -> None:
    n = sum(is_heldout(prompt, fraction, 0) for prompt in PROMPTS)
    assert n == pytest.approx(4000 * fraction, abs=4 * (4000 * fraction * (1 - fraction)) ** 0.5)


def test_a_larger_fraction_holds_out_more_and_another_seed_others() -> None:
    few, many, other = ([is_heldout(p, f, s) for p in PROMPTS] for f, s in ((0.2, 0), (0.5, 0), (0.5, 1)))
    assert all(b for a, b in zip(few, many, strict=True) if a)
    assert sum(a and b for a, b in zip(many, other, strict=True)) == pytest.approx(1000, abs=120)


def test_the_split_does_not_depend_on_the_process() -> None:
    code = "from accord.data.heldout import is_heldout; print([is_heldout(f'number {i}', 0.5, 3) for i in range(20)])"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] == str([is_heldout(prompt, 0.5, 3) for prompt in PROMPTS[:20]])


def test_a_fraction_beyond_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"heldout_fraction: 1\.5"):
        is_heldout("a", 1.5, 0)


def test_prompts_and_pairs_split_alike_whatever_the_length_limit(rows: Rows, small: Tokenizer) -> None:
    """A reward model's held-out prompts are those that ``pairs`` holds out."""
    prompts = PROMPTS[:60]
    data = load_prompts(rows(*({"prompt": p} for p in prompts)), small, 64)
    expected = [text for text in data.texts if is_heldout(text, 0.3, 7)]
    assert len(expected) > 5
    more: list[dict[str, Any]] = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts]
    for limit in (5, 64):
        found = load_preferences(rows(*more), small, PairLengths(limit, 80))
        _, heldout = split_by_prompt(found.pairs, found.texts, 0.3, 7)
        assert len(heldout) == len(expected)
        assert len(found.pairs) == len(prompts)
