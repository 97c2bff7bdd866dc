"""Which replies are compared, and with what probability."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from accord.data.samples import Candidate, Sample
from accord.stage_kinds.judges.matching import Matching, draw_pairs, matched, probability


def of(how: str, pairs: int = 2) -> Matching:
    return Matching(how, pairs)  # type: ignore[arg-type]


def test_matching_of_extremes_pairs_the_best_with_the_worst() -> None:
    scores = [3.0, 1.0, 5.0, 2.0, 4.0]
    rng = random.Random(0)
    assert matched(of("extremes"), 5, rng, scores) == [(2, 1), (4, 3)]
    assert matched(of("extremes", 1), 5, rng, scores) == [(2, 1)]
    assert matched(of("extremes", 9), 5, rng, scores) == [(2, 1), (4, 3)]  # no reply is in two pairs


@pytest.mark.parametrize("how", ["random", "extremes", "all"])
def test_fewer_than_two_replies_make_no_pair(how: str) -> None:
    assert matched(of(how), 1, random.Random(0), [1.0]) == []
    assert matched(of(how), 0, random.Random(0), []) == []


def test_all_is_every_pair_once() -> None:
    pairs = matched(of("all", 1), 4, random.Random(0))
    assert sorted(tuple(sorted(pair)) for pair in pairs) == list(combinations(range(4), 2))


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_the_recorded_probability_is_the_share_of_draws(pairs: int) -> None:
    rng, draws = random.Random(0), 3000
    met: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        found = matched(of("random", pairs), 5, rng)
        assert len({i for pair in found for i in pair}) == 2 * len(found)  # each reply in at most one
        met.update(tuple(sorted(pair)) for pair in found)
    expected = probability(of("random", pairs), 5)
    assert expected == min(pairs, 2) / 10
    assert set(met) == set(combinations(range(5), 2))
    deviation = (expected * (1 - expected) / draws) ** 0.5
    assert all(abs(n / draws - expected) < 4.5 * deviation for n in met.values())


def test_where_chance_does_not_choose_the_probability_is_one() -> None:
    assert probability(of("all"), 5) == probability(of("extremes"), 5) == probability(of("random"), 1) == 1.0
    assert probability(of("random", 1), 2) == 1.0


def test_people_are_not_asked_to_compare_equal_replies() -> None:
    texts = [["a", "a", "b", "a"], ["c", "c"], ["d"]]
    samples = [Sample("p", tuple(map(Candidate, some))) for some in texts]
    (pair,) = draw_pairs(samples, of("random"), random.Random(0))
    assert pair.prompt == 0
    assert {pair.a, pair.b} == {0, 2}
    assert pair.asked_with == 1.0
