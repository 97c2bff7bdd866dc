"""Points of metrics: which count, smoothed, averaged over seeds, thinned out."""

from __future__ import annotations

import math

import pytest

from accord.plots.series import Series, mean, points, smooth, thin


def test_of_several_values_at_a_step_the_last_counts() -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "kl": 0.5}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert points(rows, "loss") == Series((1, 2), (3.0, 1.0))


def test_another_x_is_taken_from_the_newest_row_that_has_it() -> None:
    rows = [
        {"step": 0, "kl": 0.0},
        {"step": 0, "score": 1.0},
        {"step": 4, "kl": 2.0, "score": 3.0},
        {"step": 5, "score": 4.0},
    ]
    assert points(rows, "score", "kl") == Series((0.0, 2.0), (1.0, 4.0))
    assert points([{"step": 0, "score": 1.0}], "score", "kl") == Series((), ())


def test_smoothing_is_the_weighted_mean_of_the_past() -> None:
    smoothed = smooth(Series((0, 1, 2), (1.0, 3.0, 5.0)), 0.5)
    assert smoothed.ys == pytest.approx((1.0, (0.5 * 1 + 3) / 1.5, (0.25 * 1 + 0.5 * 3 + 5) / 1.75))
    assert smooth(smoothed, 0.0) == smoothed


def test_a_value_that_is_not_finite_stays_and_spoils_no_other() -> None:
    ys = smooth(Series((0, 1, 2), (1.0, math.nan, 3.0)), 0.5).ys
    assert math.isnan(ys[1])
    assert (ys[0], ys[2]) == pytest.approx((1.0, (0.5 * 1 + 3) / 1.5))


def test_the_mean_of_seeds_is_over_what_all_cover() -> None:
    found = mean([Series((0, 2, 4), (0.0, 2.0, 4.0)), Series((1, 3), (5.0, 5.0))])
    assert found == Series((1, 2, 3), (3.0, 3.5, 4.0), ((1.0, 2.0, 3.0), (5.0, 5.0, 5.0)))


def test_seeds_without_a_common_step_have_no_mean() -> None:
    assert mean([Series((0, 1), (0.0, 1.0)), Series((2, 3), (0.0, 1.0))]).xs == ()


def test_thinning_keeps_both_ends_and_every_peak() -> None:
    ys = [0.0] * 10_000
    ys[777], ys[5000] = 9.0, -9.0
    thinned = thin(Series(tuple(range(10_000)), tuple(ys)))
    assert len(thinned.xs) <= 402
    assert (thinned.xs[0], thinned.xs[-1]) == (0, 9999)
    assert {(777, 9.0), (5000, -9.0)} <= set(zip(thinned.xs, thinned.ys, strict=True))
    assert thin(thinned, 500) == thinned
