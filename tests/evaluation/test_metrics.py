"""Metrics against hand numbers, closed forms and simulations."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.evaluation import metrics
from accord.evaluation.metrics import (
    accuracy_interval,
    bootstrap_ci,
    defined,
    distinct_n,
    effect_in_sd,
    length_correlation,
    length_matched_accuracy,
    pair_agreement,
    paired_difference,
    win_rate,
)


# ----------------------------------------------------------------- bootstrap
def test_prompts_weigh_alike_however_many_replies_they_have():
    mean, low, high = bootstrap_ci([[1.0, 1.0, 1.0, 1.0], [3.0]], seed=0)
    assert mean == pytest.approx(2.0, rel=1e-12)
    assert (low, high) == (1.0, 3.0)  # each extreme is drawn with probability 1/4


def test_bootstrap_has_the_standard_error_of_the_mean():
    values = np.random.default_rng(1).normal(size=(200, 1))
    mean, low, high = bootstrap_ci(values, seed=0, n=20_000)
    error = values.std(ddof=0) / math.sqrt(200)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert low == pytest.approx(values.mean() - 1.95996 * error, abs=0.05 * error)
    assert high == pytest.approx(values.mean() + 1.95996 * error, abs=0.05 * error)


def test_the_level_sets_the_tails_of_an_interval():
    values = np.random.default_rng(1).normal(size=(400, 1))
    _, low, high = bootstrap_ci(values, seed=0, n=20_000, level=0.68269)
    assert (high - low) / 2 == pytest.approx(values.std() / 20, rel=0.03)


def test_the_coverage_of_an_interval_is_near_its_level():
    rng, hits = np.random.default_rng(7), 0
    for trial in range(400):
        prompt_effect = rng.normal(0.3, 1.0, size=(60, 1))
        replies = prompt_effect + rng.normal(0.0, 0.5, size=(60, 4))
        _, low, high = bootstrap_ci(replies, seed=trial, n=500)
        hits += low <= 0.3 <= high
    # 0.95 gives 380 +- 4.4; resampling the 240 rows instead would cover about 0.71
    assert 362 <= hits <= 394


def test_more_copies_of_the_same_replies_do_not_narrow_the_interval():
    replies = np.random.default_rng(3).normal(size=(30, 2))
    copied = bootstrap_ci(np.repeat(replies, 5, axis=1), seed=0)
    assert copied == pytest.approx(bootstrap_ci(replies, seed=0), rel=1e-12)


def test_same_seed_same_interval_and_memory_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(3).normal(size=(50, 1))
    whole = bootstrap_ci(values, seed=4)
    assert whole == bootstrap_ci(values, seed=4)
    assert whole != bootstrap_ci(values, seed=5)
    monkeypatch.setattr("accord.evaluation.metrics.DRAWS_AT_ONCE", 777)
    assert whole == bootstrap_ci(values, seed=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=4), min_size=2, max_size=12), st.integers(0, 99))
def test_the_interval_lies_within_the_values(per_prompt, seed):
    mean, low, high = bootstrap_ci(per_prompt, seed, n=50)
    means = [math.fsum(row) / len(row) for row in per_prompt]
    slack = 1e-9 + 1e-9 * max(map(abs, means))
    assert min(means) - slack <= low <= high <= max(means) + slack
    assert mean == pytest.approx(math.fsum(means) / len(means), rel=1e-9, abs=1e-9)


# ----------------------------------------------------------------- differences
def test_a_known_shift_is_found_with_no_width():
    base = np.random.default_rng(0).normal(size=(20, 3))
    assert paired_difference(base + 0.25, base, seed=0) == pytest.approx((0.25, 0.25, 0.25), rel=1e-9)


def test_a_paired_difference_equals_its_hand_computed_value():
    a, b = [[1.0, 3.0], [0.0], [5.0]], [[1.0], [2.0, 4.0], [6.0, 0.0]]  # means 2, 0, 5 against 1, 3, 3
    assert paired_difference(a, b, seed=0).mean == pytest.approx(0.0, abs=1e-12)
    assert paired_difference([[4.0], *a[1:]], b, seed=0).mean == pytest.approx(2 / 3, rel=1e-12)


def test_pairing_takes_out_what_makes_a_prompt_easy():
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 5, size=(100, 1))
    a, b = easy + 0.5 + rng.normal(0, 0.1, (100, 1)), easy + rng.normal(0, 0.1, (100, 1))
    _, low, high = paired_difference(a, b, seed=0)
    assert 0.4 < low < high < 0.6


def test_an_effect_equals_its_hand_computed_value():
    b = [[0.0, 2.0], [3.0], [5.0]]  # means 1, 3, 5: sample deviation 2
    assert effect_in_sd([[2.0], [4.0], [6.0]], b) == pytest.approx(0.5, rel=1e-12)
    assert effect_in_sd([[0.0], [2.0], [4.0]], b) == pytest.approx(-0.5, rel=1e-12)


# ----------------------------------------------------------------- win rate
def test_identical_models_win_half():
    gold = np.random.default_rng(0).normal(size=(40, 4))
    assert win_rate(gold, gold, seed=0) == (0.5, 0.5, 0.5)


def test_a_win_rate_counts_ties_as_half():
    ours, theirs = [[1.0, 2.0], [0.0]], [[1.0, 3.0], [0.0, -1.0]]
    # prompt 0: 1=1 (.5), 1<3, 2>1, 2<3 -> 1.5/4; prompt 1: 0=0 (.5), 0>-1 -> 1.5/2
    assert win_rate(ours, theirs, seed=0).mean == pytest.approx((0.375 + 0.75) / 2, rel=1e-12)


def test_win_rate_of_a_gaussian_shift_has_its_closed_form():
    rng = np.random.default_rng(0)
    rate, low, high = win_rate(rng.normal(0.5, 1, (500, 4)), rng.normal(0, 1, (500, 4)), seed=0)
    expected = 0.5 * (1 + math.erf(0.5 / 2))  # P(N(.5, 2) > 0) = Phi(.5 / sqrt 2)
    assert low < expected < high
    assert rate == pytest.approx(expected, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(-3, 3), min_size=1, max_size=3),
                          st.lists(st.integers(-3, 3), min_size=1, max_size=3)), min_size=2, max_size=6))  # fmt: skip
def test_win_rate_counts_as_a_plain_loop_does_and_is_antisymmetric(prompts):
    ours, theirs = [a for a, _ in prompts], [b for _, b in prompts]
    rates = []
    for a, b in prompts:
        points = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b)]
        rates.append(sum(points) / len(points))
    rate, low, high = win_rate(ours, theirs, seed=3, n=40)
    assert rate == pytest.approx(sum(rates) / len(rates), rel=1e-9)
    back = win_rate(theirs, ours, seed=3, n=40)
    assert back == pytest.approx((1 - rate, 1 - high, 1 - low), abs=1e-9)


# ----------------------------------------------------------------- agreement and length
def test_agreement_counts_the_pairs_ordered_alike():
    assert pair_agreement([1, 2, 3], [10, 30, 20]) == pytest.approx(2 / 3, rel=1e-12)
    assert pair_agreement([1, 2, 3], [3, 2, 1]) == 0.0
    assert pair_agreement([5, 5, 6], [1, 2, 3]) == pytest.approx(2.5 / 3, rel=1e-12)  # a's tie counts one half
    assert pair_agreement([1, 2, 3], [7, 7, 8]) == 1.0  # b's tie is no pair


def test_agreement_compares_within_rows_only():
    a, b = [[1.0, 2.0], [9.0, 8.0]], [[0.0, 1.0], [0.0, 1.0]]
    assert pair_agreement(a, b) == 0.5
    assert pair_agreement(np.array(a), np.array(b)) == 0.5
    # pairs weigh alike: three pairs of the first row, one of the second
    assert pair_agreement([[1.0, 2.0, 3.0], [1.0, 0.0]], [[1.0, 2.0, 3.0], [0.0, 1.0]]) == pytest.approx(0.75)


def test_agreement_does_not_change_with_scale():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(size=60)
    assert pair_agreement(3 * a + 7, np.exp(b)) == pair_agreement(a, b)
    assert pair_agreement(-a, b) == pytest.approx(1 - pair_agreement(a, b), rel=1e-12)


def test_length_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    scores, lengths = rng.normal(size=50), rng.integers(1, 40, size=50)
    assert length_correlation(scores, lengths) == pytest.approx(np.corrcoef(scores, lengths)[0, 1], rel=1e-9)
    assert length_correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0, rel=1e-12)
    assert length_correlation([0.1, 0.7, 0.3], [32, 32, 32]) == 0.0


def test_a_model_that_counts_tokens_has_chance_accuracy_on_length_matched_pairs():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(20, 60, 4000), rng.integers(10, 40, 4000)
    assert (chosen > rejected).mean() > 0.8  # accuracy from length alone
    matched = length_matched_accuracy(chosen, rejected, chosen, rejected, tolerance=0.0)
    assert matched.accuracy == 0.5
    assert matched.n == (chosen == rejected).sum()


def test_length_matched_accuracy_equals_its_hand_computed_value():
    result = length_matched_accuracy([1, 0, 5, 2], [0, 1, 0, 2], [100, 95, 100, 10], [90, 100, 89, 10])
    assert result == (0.5, 3)  # won, lost, too unlike (11 of 100), tied
    assert length_matched_accuracy([1], [0], [10], [100]) == (None, 0)


# ----------------------------------------------------------------- texts
def test_distinct_counts_different_n_grams():
    assert distinct_n(["a b a b", "b c"], n=2) == pytest.approx(3 / 4)  # ab ba ab | bc; "b b" across texts is none
    assert distinct_n(["a b a b", "b c"], n=1) == pytest.approx(3 / 6)
    assert distinct_n(["one", "two  three\n"], n=2) == 1.0


# ----------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_ci([], 0), "per_prompt: empty"),
        (lambda: bootstrap_ci([[1.0], []], 0), "prompt 1: empty"),
        (lambda: bootstrap_ci([[1.0], [0.0, float("nan")]], 0), "prompt 1: 1 of 2 values are not finite"),
        (lambda: bootstrap_ci([[1.0]], 0), "at least 2 prompts"),
        (lambda: bootstrap_ci([1.0, 2.0], 0), "expected a flat sequence"),
        (lambda: bootstrap_ci([[1.0], [2.0]], 0, level=95), "level"),
        (lambda: paired_difference([[1.0], [2.0]], [[1.0]], 0), "2 against 1"),
        (lambda: effect_in_sd([[1.0], [2.0]], [[3.0], [3.0]]), "do not vary"),
        (lambda: win_rate([[1.0], [2.0]], [[1.0], [float("inf")]], 0), "theirs, prompt 1"),
        (lambda: pair_agreement([], []), "empty"),
        (lambda: pair_agreement([1, 2], [3, 3]), "no two rows differ"),
        (lambda: pair_agreement([1, 2, 3], [1, 2]), "3 against 2"),
        (lambda: length_correlation([1.0], [1, 2]), "1 against 2"),
        (lambda: length_matched_accuracy([], [], [], []), "empty"),
        (lambda: length_matched_accuracy([1], [1], [1], [1, 2]), "rejected_lengths"),
        (lambda: distinct_n([], 2), "none of the 0"),
        (lambda: distinct_n(["one", ""], 2), "none of the 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_metrics_import_nothing_but_numpy_and_the_standard_library():
    tree = ast.parse(inspect.getsource(metrics))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}
    assert {str(name).split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy"}


def test_an_undefined_figure_is_none_with_a_reason_and_loses_no_other():
    ties = [[1.0, 1.0], [1.0, 1.0]]
    found = defined(
        {
            "agreement": lambda: pair_agreement(ties, ties),
            "kl": lambda: float("nan"),
            "effect": lambda: effect_in_sd(ties, ties),
            "length": lambda: 3.0,
            "none": lambda: None,
        }
    )
    reasons = found.pop("undefined")
    assert found == {"agreement": None, "kl": None, "effect": None, "length": 3.0, "none": None}
    assert reasons["agreement"] == "scores_b: no two rows differ, so there is no pair to agree on"
    assert (reasons.keys(), reasons["kl"]) == ({"agreement", "kl", "effect"}, "it is nan")
    assert defined({"a": lambda: 1.0}) == {"a": 1.0}


# ------------------------------------------------------------------ accuracy
def test_accuracy_of_pairs_of_their_own_prompts_has_wilsons_interval() -> None:
    """7 of 10: from 0.397 to 0.892."""
    found = accuracy_interval([1.0] * 7 + [0.0] * 3, range(10))
    assert found == pytest.approx((0.7, *wilson(0.7, 10)), abs=1e-6)
    assert found[1:] == pytest.approx((0.3968, 0.8922), abs=1e-4)


def wilson(p: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5,
    )
    return middle - half, middle + half


def test_accuracy_of_repeated_pairs_is_no_surer() -> None:
    """Every pair four times under its prompt: the interval is that of the prompts."""
    values = [1.0] * 60 + [0.0] * 40
    once = accuracy_interval(values, range(100))
    often = accuracy_interval([v for v in values for _ in range(4)], [i for i in range(100) for _ in range(4)])
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_accuracy_that_is_perfect_is_not_certain() -> None:
    found = accuracy_interval([1.0] * 25, range(25))
    assert (found.low, found.high) == pytest.approx(wilson(1.0, 25), abs=1e-5)
    assert accuracy_interval([0.0, 0.0], ["a", "a"]).high == pytest.approx(wilson(0.0, 1)[1], abs=1e-5)


def test_accuracy_intervals_cover_the_truth() -> None:
    """400 draws of 40 pairs in 20 prompts, whose two pairs are right together half of the time."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(20), 2)
    hits = 0
    for _ in range(400):
        own, shared = rng.random(40) < 0.75, np.repeat(rng.random(20) < 0.75, 2)
        right = np.where(np.repeat(rng.random(20) < 0.5, 2), shared, own).astype(float)
        found = accuracy_interval(right, prompts.tolist())
        hits += found.low <= 0.75 <= found.high
    assert 0.92 <= hits / 400 <= 0.985
