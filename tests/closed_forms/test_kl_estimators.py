"""k1, k2 and k3 against the exact KL, by summing over every action instead of drawing some.

What holds, for actions drawn from the policy pi and a reference ref:

====================================  ==========================  =====================================================
                                      expected value              expected gradient as a loss, the samples fixed
====================================  ==========================  =====================================================
k1 = log pi - log ref                 KL(pi || ref), exactly      none at all: refused as a loss
k2 = k1 squared / 2                   another number              that of KL(pi || ref)
k3 = ref / pi - 1 - log(ref / pi)     KL(pi || ref), exactly      that of KL(ref || pi), the other way round
k1 in the reward (policy gradient)                                that of KL(pi || ref); of a reply, that of all of it
====================================  ==========================  =====================================================

Near the reference k3 varies far less than k1; far from it, it can vary without bound while k1 does not.  Of a reply of
several tokens, k2 on each token has the gradient of each choice's KL with the texts before it fixed; it does not see
that a choice leads to texts where the KL is larger.  Only the reward does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from accord.functional.advantages import token_gae
from accord.functional.kl import k1, k2, k3
from accord.functional.losses.policy import kl_penalty_loss, ppo_policy_loss
from accord.rollout.shaping import token_rewards

Estimator = Callable[[Tensor], Tensor]
TOYS = [(2, 0.3, 0), (3, 1.0, 1), (5, 0.1, 2), (5, 2.0, 3), (17, 0.7, 4)]  # actions, distance, seed


def toy(actions: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    ref, step = torch.randn(2, actions, generator=generator, dtype=torch.float64)
    return (ref + distance * step).requires_grad_(), ref


def log_ratios(logits: Tensor, ref: Tensor) -> Tensor:
    return logits.log_softmax(-1) - ref.log_softmax(-1)


def exact_kl(logits: Tensor, ref: Tensor) -> Tensor:
    """(…,) KL(pi || ref) of logits (…, V)."""
    kl: Tensor = kl_divergence(Categorical(logits=logits), Categorical(logits=ref))
    return kl


def moments(estimator: Estimator, logits: Tensor, ref: Tensor) -> tuple[float, float]:
    p = logits.detach().softmax(-1)
    x = estimator(log_ratios(logits, ref)).detach()
    mean = (p * x).sum()
    return float(mean), float((p * (x - mean).square()).sum())


def gradient_of(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("numbers", TOYS)
def test_k1_and_k3_are_unbiased_and_k2_is_not(numbers: tuple[int, float, int]) -> None:
    logits, ref = toy(*numbers)
    exact = exact_kl(logits, ref).item()
    assert moments(k1, logits, ref)[0] == pytest.approx(exact, rel=1e-10)
    assert moments(k3, logits, ref)[0] == pytest.approx(exact, rel=1e-10)
    assert abs(moments(k2, logits, ref)[0] / exact - 1) > 1e-3


def test_k2s_bias_vanishes_near_the_reference() -> None:
    """Its expectation is another f-divergence, of the same second order."""
    errors = []
    for distance in (0.4, 0.2, 0.1, 0.05):
        logits, ref = toy(5, distance, 7)
        errors.append(abs(moments(k2, logits, ref)[0] / exact_kl(logits, ref).item() - 1))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


# ------------------------------------------------------------------------------------------------ variances


@pytest.mark.parametrize(("actions", "seed"), [(2, 0), (5, 2), (17, 4)])
def test_near_the_reference_k3_varies_least_by_far(actions: int, seed: int) -> None:
    """k1 is of first order in the distance, k2 and k3 of second: halving it leaves a quarter and a sixteenth."""
    near, nearer = toy(actions, 0.1, seed), toy(actions, 0.05, seed)
    first, third = moments(k1, *near)[1], moments(k3, *near)[1]
    assert third < 0.1 * first
    assert moments(k2, *near)[1] < 0.1 * first
    assert moments(k1, *nearer)[1] / first == pytest.approx(1 / 4, rel=0.15)
    assert moments(k3, *nearer)[1] / third == pytest.approx(1 / 16, rel=0.15)


def test_far_from_the_reference_k3_varies_without_bound() -> None:
    """An action that the policy almost never takes, one time in n: k3 squared there is about (n / 2)^2 at 1 / n."""
    ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    for n in (1e2, 1e4, 1e6):
        policy = torch.tensor([1 / n, 1 - 1 / n], dtype=torch.float64).log()
        assert moments(k3, policy, ref)[1] == pytest.approx(n / 4, rel=20 / math.sqrt(n))
        assert moments(k1, policy, ref)[1] < 1
    # on the other side, where the policy is the wider one, k3 stays the steadier
    narrow = torch.tensor([0.01, 0.99], dtype=torch.float64).log()
    assert moments(k3, ref, narrow)[1] < moments(k1, ref, narrow)[1]


# ------------------------------------------------------------------------------------------------ gradients


def penalty_gradient(logits: Tensor, ref: Tensor, estimator: str) -> Tensor:
    """The expected gradient of the loss itself, one action at a time, weighed by how often it is drawn."""
    new, old = logits.log_softmax(-1), ref.log_softmax(-1)
    here = torch.ones(1, dtype=torch.bool)
    p = logits.detach().softmax(-1)
    terms = [
        w * kl_penalty_loss(a[None], b[None], here, estimator).loss.total for w, a, b in zip(p, new, old, strict=True)
    ]
    return gradient_of(torch.stack(terms).sum(), logits)


@pytest.mark.parametrize("numbers", TOYS)
def test_each_estimator_as_a_loss_has_its_known_gradient(numbers: tuple[int, float, int]) -> None:
    logits, ref = toy(*numbers)
    forward = gradient_of(kl_divergence(Categorical(logits=logits), Categorical(logits=ref)), logits)
    reverse = gradient_of(kl_divergence(Categorical(logits=ref), Categorical(logits=logits)), logits)
    near = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(penalty_gradient(logits, ref, "k2"), forward, **near)
    torch.testing.assert_close(penalty_gradient(logits, ref, "k3"), reverse, **near)
    assert (forward - reverse).norm() > 0.01 * forward.norm()
    # k1: with fixed samples, the gradient of E[log pi] is that of a sum that is always 1
    nothing = gradient_of((logits.detach().softmax(-1) * k1(log_ratios(logits, ref))).sum(), logits)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="expected gradient of zero"):
        penalty_gradient(logits, ref, "k1")


# ------------------------------------------------------------------------------------------------ replies of two tokens


class Replies(NamedTuple):
    """All nine replies of two tokens out of three, the second one's probabilities depending on the first."""

    logprobs: Tensor  # (9, 2), differentiable
    ref_logprobs: Tensor  # (9, 2)
    probability: Tensor  # (9,) of each, without gradient
    exact: Tensor  # () KL of the whole replies
    of_choices: Tensor  # () the same number, with the texts before each choice fixed
    parameters: tuple[Tensor, Tensor]


def replies() -> Replies:
    generator = torch.Generator().manual_seed(5)
    ref_first, ref_second = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3,), (3, 3)))
    first = (ref_first + torch.randn(3, generator=generator, dtype=torch.float64)).requires_grad_()
    second = (ref_second + 2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)).requires_grad_()

    def tokens(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a.log_softmax(-1).repeat_interleave(3), b.log_softmax(-1).flatten()], 1)

    new, old = tokens(first, second), tokens(ref_first, ref_second)
    p = new.sum(1).exp()
    exact = (p * (new - old).sum(1)).sum()
    fixed = first.detach().softmax(-1)
    of_choices = exact_kl(first, ref_first) + (fixed * exact_kl(second, ref_second)).sum()
    return Replies(new, old, p.detach(), exact, of_choices, (first, second))


def gradients_of(value: Tensor, toys: Replies) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, toys.parameters, retain_graph=True)])


def test_the_sum_over_tokens_is_the_kl_of_the_reply() -> None:
    toys = replies()
    ratios = (toys.logprobs - toys.ref_logprobs).detach()
    for estimator in (k1, k3):
        mean = (toys.probability * estimator(ratios).sum(1)).sum()
        torch.testing.assert_close(mean, toys.exact.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(toys.of_choices, toys.exact, rtol=1e-10, atol=0)
    assert toys.exact.item() > 0.2


def test_the_reward_has_the_gradient_of_the_whole_replys_kl_whatever_the_critic() -> None:
    """Shaping, GAE at lambda 1 and the policy loss at ratio 1, as PPO puts them together; scores are zero."""
    toys, beta = replies(), 0.3
    everywhere = torch.ones(9, 2, dtype=torch.bool)
    new = toys.logprobs.detach()
    rewards = token_rewards(torch.zeros(9), new, toys.ref_logprobs, everywhere, beta)
    # a critic sees the text so far: one number before the first token, one for each first token
    values = torch.tensor([0.4, -0.2, 0.9, 0.1], dtype=torch.float64)
    seen = torch.stack([values[0].expand(9), values[1:].repeat_interleave(3)], 1)
    advantages, _ = token_gae(rewards, seen, everywhere, 1.0, 1.0)
    rows = zip(toys.logprobs, new, advantages, everywhere, toys.probability, strict=True)
    loss = torch.stack([w * ppo_policy_loss(n, o, a, m, 0.2).loss.total for n, o, a, m, w in rows]).sum()
    torch.testing.assert_close(gradients_of(loss, toys), beta * gradients_of(toys.exact, toys), rtol=1e-9, atol=1e-12)


def test_k2_on_each_token_has_the_gradient_of_the_choices_alone() -> None:
    toys = replies()
    everywhere = torch.ones(2, dtype=torch.bool)
    rows = zip(toys.logprobs, toys.ref_logprobs, toys.probability, strict=True)
    loss = torch.stack([w * kl_penalty_loss(n, r, everywhere, "k2").loss.total for n, r, w in rows]).sum()
    found, whole = gradients_of(loss, toys), gradients_of(toys.exact, toys)
    torch.testing.assert_close(found, gradients_of(toys.of_choices, toys), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[3:], whole[3:], rtol=1e-9, atol=1e-12)  # of the last token, the whole
    assert (found[:3] - whole[:3]).norm() > 0.1 * whole[:3].norm()  # of the first, without what it leads to
