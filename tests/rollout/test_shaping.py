"""From a score to rewards for tokens: hand-computed numbers, and what must stay unchanged."""

from __future__ import annotations

import math

import pytest
import torch

from accord.functional.masked import masked_mean, masked_var
from accord.rollout.shaping import shape_scores, token_rewards, whiten_rewards

NAN = math.nan
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])


def test_the_score_is_at_the_last_token_and_the_kl_at_every_token() -> None:
    """Hand-computed, with NaN after every end."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, NAN], [-0.5, NAN, NAN, NAN], [-1.0, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -1.0, -3.0, NAN], [-0.5, NAN, NAN, NAN], [-2.0, -0.5, -1.0, -3.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, -30.0]), logprobs, reference, MASK, beta=0.1)
    expected = torch.tensor([[-0.05, 0.1, 10.0, 0.0], [20.0, 0.0, 0.0, 0.0], [-0.1, 0.05, 0.0, -30.2]])
    torch.testing.assert_close(rewards, expected, rtol=1e-6, atol=1e-7)


def test_without_beta_only_the_score_is_left() -> None:
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), noise, noise.flip(0), MASK, beta=0.0)
    assert rewards.tolist() == [[0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 3]]


def test_a_policy_likelier_than_its_reference_pays() -> None:
    """The sign: log π above log π_ref costs."""
    one = torch.ones(1, 1, dtype=torch.bool)
    paid = token_rewards(torch.zeros(1), torch.tensor([[-0.1]]), torch.tensor([[-0.9]]), one, beta=1.0)
    assert float(paid) == pytest.approx(-0.8)


def test_sums_of_kl_rewards_estimate_the_exact_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 6, generator=generator).log_softmax(-1)
    drawn = torch.multinomial(policy.exp(), 40_000, replacement=True, generator=generator)
    mask = torch.ones(40_000, 1, dtype=torch.bool)
    rewards = token_rewards(torch.zeros(40_000), policy[drawn, None], reference[drawn, None], mask, beta=1.0)
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float(-rewards.mean()) == pytest.approx(exact, abs=4 * float(rewards.std()) / 200)
    assert exact > 0.2


def test_the_missing_eos_penalty_replaces_the_score_once() -> None:
    """Instead of the score, not added to it, and unaffected by scale and clip."""
    scores, ended = torch.tensor([5.0, 5.0, -5.0, NAN]), torch.tensor([True, False, False, False])
    shaped = shape_scores(scores, ended, scale=10.0, clip=0.5, missing_eos_penalty=-1.0)
    assert shaped.tolist() == [0.5, -1.0, -1.0, -1.0]
    assert shape_scores(scores[:3], ended[:3]).tolist() == [5.0, 5.0, -5.0]
    assert shape_scores(scores[:3], ended[:3], missing_eos_penalty=0.0).tolist() == [5.0, 0.0, 0.0]


def test_scores_are_scaled_before_they_are_cut() -> None:
    ended = torch.ones(3, dtype=torch.bool)
    assert shape_scores(torch.tensor([1.0, 3.0, -4.0]), ended, scale=0.5, clip=1.0).tolist() == [0.5, 1.0, -1.0]
    assert shape_scores(torch.tensor([1.0, 3.0, -4.0]), ended, scale=2.0).tolist() == [2.0, 6.0, -8.0]


def test_whitening_keeps_signs_and_ratios() -> None:
    """A shift would turn the small positive reward into a penalty."""
    rewards = torch.tensor([[0.1, 9.0, 5.0, NAN], [7.0, NAN, NAN, NAN], [8.0, -0.2, 0.0, 6.0]])
    white = whiten_rewards(rewards, MASK)
    assert (white[~MASK] == 0).all()
    assert torch.equal(white[MASK].sign(), rewards[MASK].sign())
    assert float(masked_var(white, MASK)) == pytest.approx(1.0, rel=1e-5)
    deviation = rewards[MASK].double().std(correction=0).float()
    torch.testing.assert_close(white[MASK], rewards[MASK] / deviation, rtol=1e-5, atol=1e-7)
    assert float(masked_mean(white, MASK)) > 1
