"""A simulated annotator: which replies it compares and which one it prefers.  Pure functions.

Preferences follow Bradley-Terry: P(a over b) = σ((score_a − score_b) / noise).  Which replies are compared is random
by default: where the best is always compared with the worst, similar replies never are, and a reward model may order
those the wrong way round (docs/notebook.md).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations

from accord.config.data import PairsConfig


def prefer(a: float, b: float, noise: float, rng: random.Random) -> bool:
    """Whether the annotator prefers the reply scored ``a`` to the one scored ``b``."""
    if noise == 0:
        return a > b
    gap = max(-60.0, min(60.0, (a - b) / noise))
    return rng.random() < 1.0 / (1.0 + math.exp(-gap))


def pair_up(
    texts: Sequence[str], scores: Sequence[float], config: PairsConfig, rng: random.Random
) -> list[tuple[str, str]]:
    """(chosen, rejected) pairs of one prompt's replies, without equal texts, equal scores and gaps below ``min_gap``."""
    order = rng.sample(range(len(texts)), len(texts))
    if config.matching == "extremes":
        order.sort(key=lambda i: -scores[i])
    compared = [(order[k], order[-1 - k]) for k in range(min(config.pairs, len(order) // 2))]
    if config.matching == "all":
        compared = list(combinations(order, 2))
    pairs = []
    for a, b in compared:
        gap = abs(scores[a] - scores[b])
        if gap == 0 or gap < config.min_gap or texts[a] == texts[b]:
            continue
        first = prefer(scores[a], scores[b], config.noise, rng)
        pairs.append((texts[a], texts[b]) if first else (texts[b], texts[a]))
    return pairs
