"""KL estimators against exact enumeration of a categorical, and the adaptive coefficient's hand numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.functional.kl import AdaptiveKL, FixedKL, k1, k2, k3, kl_in_loss


def policies(distance: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(6, generator=generator, dtype=torch.float64)
    return (ref + distance * torch.randn(6, generator=generator, dtype=torch.float64)).requires_grad_(), ref


def expectation(estimator, distance: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """(mean, variance, gradient in the policy's logits) of an estimator over all actions, with fixed samples."""
    logits, ref = policies(distance)
    p = torch.softmax(logits, -1).detach()
    x = estimator(torch.log_softmax(logits, -1) - torch.log_softmax(ref, -1))
    mean = (p * x).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return mean.detach(), (p * (x - mean).square()).sum().detach(), gradient


def exact(reverse: bool = False, distance: float = 0.5) -> tuple[Tensor, Tensor]:
    logits, ref = policies(distance)
    p, q = torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(logits=ref)
    kl = torch.distributions.kl_divergence(q, p) if reverse else torch.distributions.kl_divergence(p, q)
    return kl.detach(), torch.autograd.grad(kl, logits)[0]


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    kl, _ = exact()
    torch.testing.assert_close(expectation(k1)[0], kl, rtol=1e-12, atol=0)
    torch.testing.assert_close(expectation(k3)[0], kl, rtol=1e-12, atol=0)
    assert abs(expectation(k2)[0] / kl - 1) > 0.01


def test_k3_varies_less_than_k1_near_the_reference() -> None:
    assert expectation(k3, 0.1)[1] < 0.05 * expectation(k1, 0.1)[1]


def test_each_estimator_as_a_loss_has_its_known_gradient() -> None:
    """k1 has none, k2 has the KL's, k3 has that of the reverse divergence."""
    _, gradient = exact()
    _, reverse = exact(reverse=True)
    torch.testing.assert_close(expectation(k1)[2], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(expectation(k2)[2], gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(expectation(k3)[2], reverse, rtol=1e-12, atol=1e-15)
    assert (reverse - gradient).norm() > 0.01 * gradient.norm()


def test_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    """REINFORCE on a constant -k1: the gradient of E[log pi * sg(k1)] is that of the KL."""
    logits, ref = policies()
    logp = torch.log_softmax(logits, -1)
    reward = -k1(logp - torch.log_softmax(ref, -1)).detach()
    (gradient,) = torch.autograd.grad(-(logp.exp().detach() * logp * reward).sum(), logits)
    torch.testing.assert_close(gradient, exact()[1], rtol=1e-12, atol=1e-15)


def test_sign_k1_is_positive_under_the_policy() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, ref = policies(1.0)
    log_ratio = (torch.log_softmax(logits, -1) - torch.log_softmax(ref, -1)).detach()
    drawn = torch.multinomial(torch.softmax(logits.detach(), -1), 20_000, replacement=True, generator=generator)
    sample = k1(log_ratio[drawn])
    kl = float(exact(distance=1.0)[0])
    assert float(sample.mean()) == pytest.approx(kl, abs=4 * float(sample.std()) / 20_000**0.5)
    assert (log_ratio < 0).any()


def test_estimators_equal_hand_computed_numbers() -> None:
    x = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    assert k1(x).tolist() == [0.0, 1.0, -1.0]
    assert k2(x).tolist() == [0.0, 0.5, 0.5]
    assert k3(x).tolist() == pytest.approx([0.0, 0.36787944117144233, 0.7182818284590451], rel=1e-12)


def test_only_k2_and_k3_belong_in_a_loss() -> None:
    assert kl_in_loss("k2") is k2
    assert kl_in_loss("k3") is k3
    with pytest.raises(ValueError, match="expected gradient of zero"):
        kl_in_loss("k1")
    with pytest.raises(ValueError, match="'k4' is not known"):
        kl_in_loss("k4")


def test_the_adaptive_coefficient_equals_hand_computed_numbers() -> None:
    controller = AdaptiveKL(beta=1.0, target=6.0, horizon=10_000)
    assert controller.update(12.0, 512).beta == pytest.approx(1.01024, rel=1e-9)  # error 1, clipped to 0.2
    assert controller.update(0.0, 512).beta == pytest.approx(0.98976, rel=1e-9)
    assert controller.update(6.0, 512).beta == 1
    assert controller.update(6.6, 100).beta == pytest.approx(1.001, rel=1e-9)  # error 0.1, not clipped
    assert controller.update(5.4, 100).beta == pytest.approx(0.999, rel=1e-9)  # error -0.1
    assert controller.update(-3.0, 512).beta == pytest.approx(0.98976, rel=1e-9)  # an estimate may be below zero
    assert AdaptiveKL(0.15, 6.0, 10_000).update(12.0, 512).beta == pytest.approx(0.151536, rel=1e-9)
    assert controller.beta == 1


def test_the_adaptive_coefficient_over_three_batches_equals_hand_computed_numbers() -> None:
    """Each starts from the last: up by 0.2 * 500 / 1000, up by 0.1 * 500 / 1000, down by 0.2 * 1000 / 1000."""
    controller = AdaptiveKL(beta=2.0, target=10.0, horizon=1000)
    seen = []
    for kl, replies in ((30.0, 500), (11.0, 500), (1.0, 1000)):
        controller = controller.update(kl, replies)
        seen.append(controller.beta)
    assert seen == pytest.approx([2.2, 2.31, 1.848], rel=1e-9)
    assert AdaptiveKL(0.0, 6.0, 10_000).update(60.0, 512).beta == 0


def test_coefficients_survive_a_checkpoint() -> None:
    controller = AdaptiveKL(0.15, 6.0, 10_000).update(9.0, 64)
    assert AdaptiveKL(**controller.state()) == controller  # type: ignore[arg-type]
    fixed = FixedKL(0.05)
    assert fixed.update(100.0, 64) == fixed == FixedKL(**fixed.state())


@pytest.mark.parametrize("wrong", [(-0.1, 6.0, 10), (0.1, 0.0, 10), (0.1, 6.0, 0), (float("nan"), 6.0, 10)])
def test_impossible_coefficients_are_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AdaptiveKL(*wrong)
    with pytest.raises(ValueError, match="beta: -1"):
        FixedKL(-1)
