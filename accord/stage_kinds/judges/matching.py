"""Which replies to a prompt are compared.  Pure functions.

They are drawn at random by default: where the best is always compared with the worst, similar replies never are, and a
reward model may order those the wrong way round (docs/notebook.md).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

from accord.data.samples import Sample
from accord.stage_kinds.judges.judgment import Comparison


@dataclass(frozen=True, slots=True)
class Matching:
    """How pairs are formed; ``extremes`` needs scores."""

    how: Literal["random", "extremes", "all"]
    pairs: int
    """Per prompt; each reply is in at most one.  ``all`` ignores it."""

    def describe(self) -> str:
        """In words, for the screen."""
        return "every pair of a prompt's replies" if self.how == "all" else f"up to {self.pairs} a prompt, {self.how}"


def matched(matching: Matching, count: int, rng: random.Random, scores: Sequence[float] = ()) -> list[tuple[int, int]]:
    """The pairs of indices to compare among ``count`` replies to a prompt."""
    order = rng.sample(range(count), count)
    if matching.how == "extremes":
        order.sort(key=lambda i: -scores[i])
    if matching.how == "all":
        return list(combinations(order, 2))
    return [(order[k], order[-1 - k]) for k in range(min(matching.pairs, count // 2))]


def probability(matching: Matching, count: int) -> float:
    """With which each pair of ``count`` replies is among those of ``matched``; 1 where chance does not choose.

    >>> probability(Matching("random", 1), 4)
    0.16666666666666666
    """
    if matching.how != "random" or count < 2:
        return 1.0
    return min(matching.pairs, count // 2) / comb(count, 2)


def draw_pairs(samples: Sequence[Sample], matching: Matching, rng: random.Random) -> list[Comparison]:
    """The pairs to ask, drawn without looking at the replies; of equal replies to a prompt only the first takes part."""
    pairs = []
    for index, sample in enumerate(samples):
        first = {candidate.text: i for i, candidate in reversed([*enumerate(sample.candidates)])}
        places = sorted(first.values())
        chance = probability(matching, len(places))
        pairs += [Comparison(index, places[a], places[b], chance) for a, b in matched(matching, len(places), rng)]
    return pairs
