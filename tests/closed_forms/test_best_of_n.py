"""The KL of best-of-n against enumeration and integration, and as an upper bound for discrete replies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.evaluation.metrics import best_of_n_kl


def enumerated_kl(chances: list[float], scores: list[float], n: int) -> float:
    """KL(best of n || policy), over every list of n draws; of equal scores the first drawn is taken."""
    best = [0.0] * len(chances)
    for draws in itertools.product(range(len(chances)), repeat=n):
        winner = max(draws, key=lambda reply: scores[reply])
        best[winner] += math.prod(chances[reply] for reply in draws)
    return sum(b * math.log(b / p) for b, p in zip(best, chances, strict=True) if b > 0)


def grid_kl(replies: int, n: int) -> float:
    """The same for ``replies`` equally likely ones of different scores: the winner is the k-th with (k/m)^n less."""
    reached = (np.arange(replies + 1) / replies) ** n
    best = np.diff(reached)
    best = best[best > 0]
    return float((best * np.log(best * replies)).sum())


def test_the_published_numbers() -> None:
    found = [best_of_n_kl(n) for n in (1, 2, 4, 16, 64, 256)]
    assert found == pytest.approx([0.0, math.log(2) - 0.5, 0.636294, 1.835089, 3.174508, 4.549083], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4, 16, 256])
def test_it_is_the_integral_for_continuous_scores(n: int) -> None:
    """The best of n uniform ranks has density n u^(n - 1), that is, u^n is uniform."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    log_u = np.log((nodes + 1) / 2) / n
    assert float(weights @ (math.log(n) + (n - 1) * log_u)) / 2 == pytest.approx(best_of_n_kl(n), abs=5e-5)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_it_is_the_limit_of_many_replies_and_bounds_from_above(n: int) -> None:
    assert grid_kl(4, 3) == pytest.approx(enumerated_kl([0.25] * 4, [0.0, 1.0, 2.0, 3.0], 3), rel=1e-12)
    gaps = [best_of_n_kl(n) - grid_kl(m, n) for m in (10, 100, 1000, 100_000)]
    assert gaps == sorted(gaps, reverse=True)
    assert 0 < gaps[-1] < 1e-3 * best_of_n_kl(n)


@settings(deadline=None, max_examples=40)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    scores=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    n=st.integers(1, 4),
)
def test_it_bounds_any_policy_over_few_replies(weights: list[float], scores: list[int], n: int) -> None:
    chances = [w / math.fsum(weights) for w in weights]
    assert enumerated_kl(chances, [float(s) for s in scores], n) <= best_of_n_kl(n) + 1e-12


def test_where_all_score_alike_nothing_is_chosen() -> None:
    assert enumerated_kl([0.2, 0.3, 0.5], [1.0, 1.0, 1.0], 3) == pytest.approx(0, abs=1e-12)
    assert best_of_n_kl(1) == 0


def test_the_best_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, found 0"):
        best_of_n_kl(0)
