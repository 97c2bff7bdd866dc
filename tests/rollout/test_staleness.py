"""Ages, mismatch apart from staleness, and effective samples of a rollout, in hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch

from accord.rollout.staleness import AGE_BINS, is_stale, staleness_metrics, token_ages
from accord.types import Generation, Rollout

NAN = math.nan
MASK = torch.tensor([[True, True, True], [True, False, False]])


def rollout(versions: list[list[int]]) -> Rollout:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, NAN, NAN]])
    generation = Generation(((1,), (1,)), torch.ones(2, 3, dtype=torch.int64), MASK, logprobs, torch.ones(2) > 0)
    zeros = torch.zeros(2, 3)
    return Rollout(generation, torch.zeros(2, dtype=torch.int64), torch.tensor(versions), zeros, zeros[:, 0], {})


def test_ages_mismatch_staleness_and_effective_samples_equal_hand_computed_numbers() -> None:
    """A reply whose weights were swapped after its first token, and one of the newest weights."""
    made = rollout([[4, 7, 7], [9, 0, 0]])
    apart = torch.tensor([[math.log(2), math.log(3), -math.log(6)], [0.25, NAN, NAN]])
    old = made.generation.logprobs + apart
    assert token_ages(made, 9).tolist() == [[5, 2, 2], [0, 9, 9]]
    found = staleness_metrics(made, 9, old)
    shares = {"age/0": 0.25, "age/1": 0, "age/2-3": 0.5, "age/4-7": 0.25, "age/8-15": 0, "age/16+": 0}
    assert {name: value for name, value in found.items() if name.startswith("age/")} == shares
    assert (found["age_mean"], found["age_max"]) == (2.25, 5)
    assert (found["mismatch_mean"], found["mismatch_max"]) == (pytest.approx(0.25), pytest.approx(0.25))
    stale = [math.log(2), math.log(3), math.log(6)]
    assert found["staleness_mean"] == pytest.approx(sum(stale) / 3, rel=1e-6)
    assert found["staleness_max"] == pytest.approx(math.log(6), rel=1e-6)
    ratios = [2, 3, 1 / 6, math.exp(0.25)]
    assert found["ess"] == pytest.approx(sum(ratios) ** 2 / (4 * sum(x * x for x in ratios)), rel=1e-5)
    replies = [1, math.exp(0.25)]  # 2 * 3 / 6
    assert found["ess_replies"] == pytest.approx(sum(replies) ** 2 / (2 * sum(x * x for x in replies)), rel=1e-5)


def test_what_no_token_shows_is_not_reported_as_zero() -> None:
    made = rollout([[3, 3, 3], [3, 0, 0]])
    assert "mismatch_mean" not in staleness_metrics(made, 4, made.generation.logprobs)
    newest = staleness_metrics(made, 3, made.generation.logprobs)
    assert "staleness_mean" not in newest
    assert (newest["mismatch_max"], newest["ess"], newest["ess_replies"], newest["age/0"]) == (0, 1, 1, 1)


def test_only_unmasked_tokens_make_a_rollout_stale() -> None:
    made = rollout([[3, 3, 3], [3, 0, 0]])
    assert not is_stale(made, 3)
    assert is_stale(made, 4)
    assert is_stale(rollout([[3, 3, 2], [3, 3, 3]]), 3)


def test_every_age_is_in_one_bin() -> None:
    for age in range(40):
        assert sum(low <= age <= high for _, low, high in AGE_BINS) == 1
