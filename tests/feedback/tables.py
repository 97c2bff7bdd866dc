"""Votes as small tables, and simulated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Vote:
    pair: int
    annotator: str
    choice: str
    strength: int = 1
    seconds: float = 4.0
    left: str = "a"
    occasion: int = 0
    gold: str | None = None


def table(rows: dict[str, str], **others: Any) -> list[Vote]:
    """Votes of annotators on pairs 0, 1, …; "." is no vote, "=" a tie, "0" both bad, "-" skipped."""
    words = {"a": "a", "b": "b", "=": "tie", "0": "both_bad", "-": "skip"}
    return [
        Vote(pair, annotator, words[c], **others)
        for annotator, row in rows.items()
        for pair, c in enumerate(row)
        if c != "."
    ]


def simulated(pairs: int, annotators: int, accuracy: float, seed: int = 0) -> list[Vote]:
    """Annotators who are each right with probability ``accuracy``; half of the pairs are won by a."""
    generator = np.random.default_rng(seed)
    truth = generator.random(pairs) < 0.5
    right = generator.random((annotators, pairs)) < accuracy
    return [Vote(p, f"r{i}", "a" if truth[p] == right[i, p] else "b") for i in range(annotators) for p in range(pairs)]
