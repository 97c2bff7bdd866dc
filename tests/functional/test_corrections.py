"""Importance weights against hand-computed numbers, and as estimators in worlds small enough to enumerate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from accord.functional.corrections import (
    decoupled_weights,
    effective_share,
    sequence_ratios,
    token_ratios,
    truncated_sequence_weights,
    truncated_token_weights,
)
from accord.functional.losses.policy import ppo_policy_loss

Weigh = Callable[[Tensor, Tensor, Tensor, float], Tensor]
ALL: tuple[Weigh, ...] = (truncated_token_weights, truncated_sequence_weights, decoupled_weights)
NAN, INF = math.nan, math.inf
MASK = torch.tensor([[True, True, False], [True, False, False]])
BEHAVIOR = torch.tensor([[-1.0, -2.0, NAN], [-0.5, NAN, INF]])
OLD = BEHAVIOR + torch.tensor([[3.0, 0.5, NAN], [0.25, NAN, NAN]]).log()  # ratios 3 and 1/2; 1/4


@pytest.mark.parametrize(
    ("weigh", "cap", "expected"),
    [
        (truncated_token_weights, INF, [[3, 0.5, 0], [0.25, 0, 0]]),
        (truncated_token_weights, 2.0, [[2, 0.5, 0], [0.25, 0, 0]]),
        (truncated_sequence_weights, INF, [[1.5, 1.5, 0], [0.25, 0, 0]]),
        (truncated_sequence_weights, 1.0, [[1, 1, 0], [0.25, 0, 0]]),
        (decoupled_weights, INF, [[3, 0.5, 0], [0.25, 0, 0]]),
        (decoupled_weights, 2.0, [[0, 0.5, 0], [0.25, 0, 0]]),  # dropped, where truncation leaves 2
        (decoupled_weights, 3.1, [[3, 0.5, 0], [0.25, 0, 0]]),
    ],
)
def test_weights_equal_hand_computed_numbers(weigh: Weigh, cap: float, expected: list[list[float]]) -> None:
    found = weigh(OLD, BEHAVIOR, MASK, cap)
    assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in expected]
    assert not found.requires_grad


def test_a_replys_ratio_is_the_product_of_its_tokens() -> None:
    assert sequence_ratios(OLD, BEHAVIOR, MASK).tolist() == pytest.approx([1.5, 0.25], rel=1e-6)
    assert token_ratios(OLD, BEHAVIOR, MASK).sum() == pytest.approx(3.75, rel=1e-6)


@pytest.mark.parametrize("weigh", ALL)
@pytest.mark.parametrize("cap", [1.0, 2.0, INF])
def test_on_policy_every_weight_is_exactly_one(weigh: Weigh, cap: float) -> None:
    assert torch.equal(weigh(BEHAVIOR, BEHAVIOR, MASK, cap), MASK.float())


@pytest.mark.parametrize("weigh", ALL)
def test_a_small_ratio_is_not_raised_and_a_huge_one_is_limited(weigh: Weigh) -> None:
    behavior, mask = torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool)
    found = weigh(torch.tensor([[-20.0], [-math.inf], [500.0]]), behavior, mask, 2.0)
    assert found[:2, 0].tolist() == pytest.approx([math.exp(-20), 0], rel=1e-5)
    assert float(found[2, 0]) == (0.0 if weigh is decoupled_weights else 2.0)


@pytest.mark.parametrize("weigh", ALL)
def test_wrong_shapes_are_named(weigh: Weigh) -> None:
    with pytest.raises(ValueError, match=r"behavior: shape \(2,\), expected \(2, 3\)"):
        weigh(OLD, BEHAVIOR[:, 0], MASK, 1.0)


# ------------------------------------------------------------------------------------- as estimators
def policies(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of every reply of two tokens out of three, (9, 2), under pi and mu; and a reward of each (9,)."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        first, second = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3,), (3, 3)))
        first, second = first.log_softmax(-1), second.log_softmax(-1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a, b in itertools.product(range(3), repeat=2)])

    return draw(), draw(), torch.randn(9, generator=generator, dtype=torch.float64)


def test_without_a_limit_weights_of_replies_are_unbiased_and_weights_of_tokens_are_not() -> None:
    pi, mu, reward = policies(0)
    mask = torch.ones(9, 2, dtype=torch.bool)
    probability = mu.sum(1).exp()
    truth = float(pi.sum(1).exp() @ reward)
    sequence = truncated_sequence_weights(pi, mu, mask, INF)[:, 0]
    assert float((probability * sequence) @ reward) == pytest.approx(truth, rel=1e-12)
    assert float(probability @ reward) != pytest.approx(truth, abs=0.05)
    token = truncated_token_weights(pi, mu, mask, INF)
    assert float((probability * token[:, 1]) @ reward) != pytest.approx(truth, abs=0.01)  # how a was chosen stays mu's
    assert float((probability * token.prod(1)) @ reward) == pytest.approx(truth, rel=1e-12)


def test_in_a_bandit_weights_of_tokens_without_a_limit_give_the_gradient_of_the_policy() -> None:
    """E_mu[w r d log pi] = d E_pi[r], and with a limit it is that of the policy min(cap mu, pi)."""
    generator = torch.Generator().manual_seed(1)
    logits, other, reward = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    pi, mu = logits.log_softmax(-1)[:, None], other.log_softmax(-1)[:, None]
    mask, probability = torch.ones(5, 1, dtype=torch.bool), mu[:, 0].exp()
    (truth,) = torch.autograd.grad(logits.softmax(-1) @ reward, logits)
    for weigh in ALL:
        surrogate = (probability * weigh(pi.detach(), mu, mask, INF)[:, 0] * reward) @ logits.log_softmax(-1)
        (found,) = torch.autograd.grad(surrogate, logits)
        torch.testing.assert_close(found, truth)
    limited = (probability * truncated_token_weights(pi.detach(), mu, mask, 1.0)[:, 0] * reward) @ logits.log_softmax(
        -1
    )
    (found,) = torch.autograd.grad(limited, logits)
    smaller = torch.minimum(pi.detach()[:, 0].exp(), mu[:, 0].exp()) * reward
    (expected,) = torch.autograd.grad(smaller @ logits.log_softmax(-1), logits)
    torch.testing.assert_close(found, expected)
    assert (found - truth).abs().max() > 0.01


@pytest.mark.parametrize("weigh", ALL)
def test_the_weighted_surrogates_gradient_is_by_finite_differences_that_of_the_ratio_to_the_old_policy(
    weigh: Weigh,
) -> None:
    generator = torch.Generator().manual_seed(2)
    new, old, behavior, advantages = torch.randn(4, 3, 4, generator=generator, dtype=torch.float64)
    new, old, behavior = old + 0.1 * new, old.requires_grad_(), behavior.requires_grad_()
    mask = torch.rand(3, 4, generator=generator) < 0.8
    new = new.detach().requires_grad_()

    def loss(new: Tensor) -> Tensor:
        weighted = advantages * weigh(old, behavior, mask, 2.0)
        return ppo_policy_loss(new, old.detach(), weighted, mask, 0.2).loss.total

    assert torch.autograd.gradcheck(loss, (new,))
    loss(new).backward()
    assert old.grad is None  # nothing flows through the weights
    assert behavior.grad is None
    at_old = old.detach().clone().requires_grad_()
    loss(at_old).backward()
    expected = -advantages * weigh(old, behavior, mask, 2.0) * mask  # ratio 1, whatever the behavior policy was
    torch.testing.assert_close(at_old.grad, expected)


# ------------------------------------------------------------------------------------- effective sample size
def test_the_effective_share_equals_hand_computed_numbers() -> None:
    mask = torch.tensor([True, True, True, False])
    assert effective_share(torch.tensor([7.0, 7.0, 7.0, NAN]), mask) == 1.0
    assert effective_share(torch.tensor([0.0, 5.0, 0.0, INF]), mask) == pytest.approx(1 / 3)
    assert effective_share(torch.tensor([1.0, 2.0, 3.0, 9.0]), mask) == pytest.approx(36 / (3 * 14))


def test_the_effective_share_of_weights_beyond_every_number_of_none_and_of_zeros() -> None:
    everything = torch.ones(4, dtype=torch.bool)
    assert effective_share(torch.tensor([1e30, 1e30, 0.0, 0.0]), everything) == pytest.approx(0.5)
    assert effective_share(torch.tensor([INF, 1.0, 1.0, 1.0]), everything) == pytest.approx(0.25)
    assert effective_share(torch.zeros(4), everything) == 0.0
    assert effective_share(torch.ones(4), ~everything) == 0.0
    assert effective_share(torch.zeros(0), everything[:0]) == 0.0
