"""Agreement between annotators: hand-computed tables, closed forms, the package krippendorff."""

from __future__ import annotations

import numpy as np
import pytest

from accord.feedback.agreement import (
    Estimate,
    agreement,
    alpha_of,
    cohen_kappa,
    coincidences,
    gold_accuracy,
    kappas,
    krippendorff_alpha,
    left_share,
    noise_ceiling,
    pace,
    self_agreement,
    tie_share,
    wilson,
)
from tests.feedback.tables import Vote, simulated, table

krippendorff = pytest.importorskip("krippendorff", reason="the extra feedback is not installed")


# ------------------------------------------------------------------ alpha
def test_perfect_agreement_is_alpha_one_with_no_width() -> None:
    votes = table({"x": "aab=b0", "y": "aab=b0", "z": "aab=b0"})
    assert krippendorff_alpha(votes, resamples=200) == Estimate(1.0, 1.0, 1.0, 6)
    assert krippendorff_alpha(votes, "ordinal", resamples=200).value == 1.0


def test_independent_annotators_have_alpha_near_zero_inside_its_interval() -> None:
    found = krippendorff_alpha(simulated(600, 4, 0.5), resamples=300)
    assert found.value == pytest.approx(0, abs=0.06)
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.25


def test_alpha_of_a_table_computed_manually() -> None:
    """Two annotators, votes aa, aa, bb, ab: coincidences aa 4, bb 2, ab = ba = 1; n = 5, 3; D_o = 2/8, D_e = 30/56."""
    votes = table({"x": "aaba", "y": "aabb"})
    assert krippendorff_alpha(votes, resamples=10).value == pytest.approx(1 - (2 / 8) / (30 / 56), rel=1e-12)


def test_skipped_and_single_votes_do_not_count() -> None:
    votes = table({"x": "aaba-b", "y": "aabbb."})
    assert krippendorff_alpha(votes, resamples=10) == krippendorff_alpha(votes[:4] + votes[6:10], resamples=10)


def test_repeats_are_no_second_annotator() -> None:
    votes = table({"x": "aaba", "y": "aabb"})
    repeated = [*votes, *(Vote(v.pair, v.annotator, v.choice, occasion=1) for v in votes)]
    assert krippendorff_alpha(repeated, resamples=20) == krippendorff_alpha(votes, resamples=20)


def test_weighted_coincidences_are_the_packages_where_all_weights_are_one() -> None:
    generator = np.random.default_rng(3)
    unit, value = generator.integers(0, 30, 120), generator.integers(0, 7, 120)
    counts = np.zeros((30, 7), dtype=int)
    np.add.at(counts, (unit, value), 1)
    matrix = coincidences(unit, value, np.ones(120), np.ones(30), 7)
    for level in ("nominal", "ordinal"):
        expected = krippendorff.alpha(value_counts=counts, level_of_measurement=level)
        assert alpha_of(matrix, level) == pytest.approx(expected, rel=1e-12)


def test_a_pair_drawn_twice_counts_as_two_pairs() -> None:
    unit, value = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    twice = coincidences(unit, value, np.ones(4), np.array([2.0, 1.0]), 2)
    copied = coincidences(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 0, 0]), np.ones(6), np.ones(3), 2)
    np.testing.assert_allclose(twice, copied)


def test_copies_of_an_annotator_are_not_compared_with_each_other() -> None:
    """x drawn twice, y once, on a pair where they differ: every comparison is between x and y, so nothing agrees."""
    matrix = coincidences(np.array([0, 0]), np.array([0, 1]), np.array([2.0, 1.0]), np.ones(1), 2)
    np.testing.assert_allclose(matrix, [[0, 1.5], [1.5, 0]])


def test_ordinal_alpha_forgives_near_misses_that_nominal_alpha_counts_in_full() -> None:
    """Neighboring strengths of one side: the nominal alpha does not see them; ordinal, with 20 votes in each of four
    categories, D_o = 20² and D_e = 20² · 400 (2·3·1 + 2·2·4 + 2·1·9) / (80 · 79)."""
    strong = [Vote(p, "x", "ab"[p % 2], strength=3) for p in range(40)]
    weak = [Vote(p, "y", "ab"[p % 2], strength=2) for p in range(40)]
    opposite = [Vote(p, "y", "ba"[p % 2], strength=3) for p in range(40)]
    assert krippendorff_alpha(strong + weak, resamples=5).value == 1.0
    assert krippendorff_alpha(strong + weak, "ordinal", resamples=5).value == pytest.approx(1 - 80 * 79 / (400 * 40))
    assert krippendorff_alpha(strong + opposite, "ordinal", resamples=5).value < -0.9


@pytest.mark.parametrize("votes", [[], table({"x": "aab"}), table({"x": "aa", "y": "aa"}), table({"x": "-", "y": "-"})])
def test_alpha_is_undefined_without_overlap_or_with_one_category(votes: list[Vote]) -> None:
    assert krippendorff_alpha(votes, resamples=5).value is None


def test_the_interval_covers_the_true_alpha_of_simulated_annotators() -> None:
    """Annotators right with q agree with p = q² + (1-q)²; alpha → 2p - 1 where both sides win equally often."""
    truth = 2 * (0.8**2 + 0.2**2) - 1
    inside = 0
    for seed in range(20):
        found = krippendorff_alpha(simulated(120, 5, 0.8, seed), resamples=150, generator=np.random.default_rng(seed))
        inside += found.low <= truth <= found.high
    assert inside >= 16


# ------------------------------------------------------------------ two annotators
def test_kappa_of_the_classic_table() -> None:
    """20 yes/yes, 15 no/no, 5 yes/no, 10 no/yes: p_o 0.7, p_e 0.5, kappa 0.4."""
    first = ["a"] * 20 + ["b"] * 15 + ["a"] * 5 + ["b"] * 10
    second = ["a"] * 20 + ["b"] * 15 + ["b"] * 5 + ["a"] * 10
    assert cohen_kappa(first, second) == pytest.approx(0.4, rel=1e-12)
    assert cohen_kappa(first, first) == 1.0


def test_kappa_is_undefined_where_chance_always_agrees() -> None:
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None


def test_kappas_are_over_common_pairs() -> None:
    assert kappas(table({"x": "aabb.", "y": "ab.ba", "z": ".....", "w": "-...-"})) == [
        ("x", "y", pytest.approx(0.4), 3)
    ]


# ------------------------------------------------------------------ shares
def test_wilson_interval_of_a_known_example() -> None:
    found = wilson(8, 10)
    assert (found.value, found.count) == (0.8, 10)
    assert found.low == pytest.approx(0.4901625, abs=1e-6)
    assert found.high == pytest.approx(0.9433178, abs=1e-6)
    assert wilson(0, 0) == Estimate(None, None, None, 0)


def test_agreement_weights_pairs_equally_and_leaves_out_ties_where_asked() -> None:
    votes = table({"x": "aa=b", "y": "ab=a", "z": "a.ab"})
    assert agreement(votes).value == pytest.approx((1 + 0 + 1 / 3 + 1 / 3) / 4)
    assert agreement(votes, decisive=True).value == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert agreement(votes, decisive=True).count == 3


def test_self_agreement_compares_repeats_with_the_first_time() -> None:
    votes = [*table({"x": "ab=-"}), *table({"x": "aa=a"}, occasion=1)]
    found = self_agreement(votes)
    assert (found.value, found.count) == (pytest.approx(2 / 3), 3)


def test_left_share_counts_sides_not_candidates() -> None:
    votes = [Vote(0, "x", "a", left="a"), Vote(1, "x", "b", left="b"), Vote(2, "x", "a", left="b"), Vote(3, "x", "tie")]
    assert left_share(votes).value == pytest.approx(2 / 3)
    assert left_share(votes).count == 3


def test_gold_accuracy_ignores_pairs_without_an_answer() -> None:
    votes = [
        Vote(0, "x", "a", gold="a"),
        Vote(1, "x", "b", gold="a"),
        Vote(2, "x", "both_bad", gold="tie"),
        Vote(3, "x", "skip", gold="a"),
        Vote(4, "x", "b"),
    ]
    assert gold_accuracy(votes).value == pytest.approx(2 / 3)
    assert gold_accuracy(votes).count == 3


def test_tie_share_and_pace_leave_out_skipped_pairs() -> None:
    votes = [Vote(0, "x", "a", seconds=2.0), Vote(1, "x", "tie", seconds=6.0), Vote(2, "x", "skip", seconds=100.0)]
    assert (tie_share(votes), pace(votes)) == (0.5, 4.0)
    assert (tie_share([]), pace([])) == (None, None)
    assert pace([Vote(0, "x", "a", seconds=0.0), Vote(1, "x", "a", seconds=3.0)]) == 3.0


@pytest.mark.parametrize("accuracy", [0.5, 0.6, 0.75, 0.9, 1.0])
def test_noise_ceiling_is_the_accuracy_that_explains_the_agreement(accuracy: float) -> None:
    assert noise_ceiling(accuracy**2 + (1 - accuracy) ** 2) == pytest.approx(accuracy, abs=1e-7)
    assert noise_ceiling(0.3) == 0.5
