"""The annotator: who is compared with whom, and how often noise turns a preference around."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

from accord.config.data import PairsConfig
from accord.stage_kinds.annotator import pair_up, prefer


@pytest.mark.parametrize("noise", [0.4, 2.0])
def test_the_annotator_is_bradley_terry(noise: float) -> None:
    rng = random.Random(0)
    for gap in (0.0, 0.3, 1.0, -1.0):
        share = sum(prefer(5.0 + gap, 5.0, noise, rng) for _ in range(20_000)) / 20_000
        expected = 1 / (1 + math.exp(-gap / noise))
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))


def test_without_noise_the_better_always_wins_and_far_gaps_do_not_overflow() -> None:
    rng = random.Random(0)
    assert prefer(1.0, 0.999, 0.0, rng)
    assert not prefer(0.999, 1.0, 0.0, rng)
    assert prefer(1e9, 0.0, 1e-3, rng)
    assert not prefer(0.0, 1e9, 1e-3, rng)


def config_of(**values: Any) -> PairsConfig:
    return PairsConfig.model_validate({"noise": 0.0, "matching": "extremes", **values})


def made(texts: list[str], scores: list[float], **values: Any) -> list[tuple[str, str]]:
    return pair_up(texts, scores, config_of(**values), random.Random(0))


def test_matching_of_extremes_pairs_the_best_with_the_worst() -> None:
    texts, scores = ["a", "b", "c", "d", "e"], [3.0, 1.0, 5.0, 2.0, 4.0]
    assert made(texts, scores) == [("c", "b"), ("e", "d")]
    assert made(texts, scores, pairs=1) == [("c", "b")]
    assert made(texts, scores, pairs=9) == [("c", "b"), ("e", "d")]  # no reply is in two pairs
    assert made(texts, scores, min_gap=2.5) == [("c", "b")]


@pytest.mark.parametrize("matching", ["random", "extremes"])
def test_what_cannot_be_compared_is_left_out(matching: str) -> None:
    assert made(["a", "a"], [2.0, 1.0], matching=matching) == []  # the same text
    assert made(["a", "b"], [1.0, 1.0], matching=matching) == []  # nothing to tell apart
    assert made(["a"], [1.0], matching=matching) == []
    assert made([], [], matching=matching) == []


def test_random_matching_pairs_every_two_equally_often() -> None:
    texts, scores, rng = ["a", "b", "c", "d"], [4.0, 3.0, 2.0, 1.0], random.Random(0)
    met: Counter[tuple[str, str]] = Counter()
    for _ in range(3000):
        pairs = pair_up(texts, scores, config_of(matching="random"), rng)
        assert sorted("".join(map("".join, pairs))) == texts  # each in one pair
        met.update(pairs)
    assert set(met) == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}  # the better one wins
    assert all(abs(n - 1000) < 110 for n in met.values())  # four deviations


def test_noise_turns_some_pairs_around() -> None:
    rng = random.Random(0)
    outcomes = {tuple(pair_up(["a", "b"], [1.0, 0.5], config_of(noise=1.0), rng)) for _ in range(50)}
    assert outcomes == {(("a", "b"),), (("b", "a"),)}
