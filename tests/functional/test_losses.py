"""The losses against hand tables and closed forms; NaN under masks; micro-batches that add exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.functional.logprobs import token_logprobs
from accord.functional.losses.policy import entropy_bonus, kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from accord.functional.losses.preference import bradley_terry_loss, dpo_loss
from accord.functional.losses.supervised import mse_loss, sft_loss
from accord.functional.losses.terms import combine
from accord.types import LossOutput

LN2 = math.log(2)


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def metrics(out: LossOutput) -> dict[str, float]:
    return {name: mean.value() for name, mean in out.metrics.items()}


# ------------------------------------------------------------------------------------------------ supervised, reward


def test_sft_is_cross_entropy() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    out = sft_loss(torch.log_softmax(logits, -1)[torch.arange(7), targets])
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(out.loss.total, expected, rtol=1e-12, atol=0)
    assert out.loss.count == 7
    assert metrics(out)["nll"] == pytest.approx(float(expected) / 7)


def test_mse_is_torchs() -> None:
    pred, target = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 4.0, -1.0])
    out = mse_loss(pred, target)
    assert out.loss.value() == pytest.approx(5 / 3)
    assert metrics(out) == {"absolute_error": pytest.approx(1.0)}


def test_bradley_terry_equals_hand_computed_numbers() -> None:
    out = bradley_terry_loss(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 3.0]))
    expected = [math.log1p(math.exp(-2)), LN2, math.log1p(math.exp(3))]
    assert float(out.loss.total) == pytest.approx(sum(expected), rel=1e-6)
    assert metrics(out) == pytest.approx(
        {"accuracy": 0.5, "margin": -1 / 3, "chosen_reward": 1.0, "rejected_reward": 4 / 3}, rel=1e-6
    )


def test_bradley_terry_subtracts_the_margin_and_adds_the_centering_term() -> None:
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.5])
    with_margin = bradley_terry_loss(chosen, rejected, torch.tensor([1.0]))
    assert with_margin.loss.value() == pytest.approx(math.log1p(math.exp(-0.5)), rel=1e-6)
    centered = bradley_terry_loss(chosen, rejected, center=0.1)
    assert centered.loss.value() == pytest.approx(math.log1p(math.exp(-1.5)) + 0.1 * 6.25, rel=1e-6)


def test_bradley_terry_recovers_reward_differences() -> None:
    """Noiseless enumeration: labels weighted by the true probabilities; only differences are determined."""
    truth = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4], dtype=torch.float64)
    first, second = torch.combinations(torch.arange(5), 2).T
    p_first = torch.sigmoid(truth[first] - truth[second])
    rewards = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rewards], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for a, b, p in zip(first, second, p_first, strict=True):
            won = bradley_terry_loss(rewards[a, None], rewards[b, None]).loss.total
            lost = bradley_terry_loss(rewards[b, None], rewards[a, None]).loss.total
            loss = loss + p * won + (1 - p) * lost
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = rewards.detach()
    torch.testing.assert_close(found - found.mean(), truth - truth.mean(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ DPO


def test_dpo_at_the_reference_is_ln_2() -> None:
    x, y = torch.tensor([-3.0, -8.0]), torch.tensor([-5.0, -2.0])
    for smoothing in (0.0, 0.3):
        out = dpo_loss(x, y, x, y, 0.1, smoothing)
        assert out.loss.value() == pytest.approx(LN2, rel=1e-6)
    assert metrics(out)["margin"] == 0
    assert metrics(out)["accuracy"] == 0.5
    assert metrics(out)["chosen_logprob"] == -5.5
    assert metrics(out)["rejected_logprob"] == -3.5


def test_dpo_equals_hand_computed_numbers() -> None:
    args = [torch.tensor([x]) for x in (-1.0, -4.0, -2.0, -3.0)]  # margin 0.5 * ((-1 + 2) - (-4 + 3)) = 1
    out = dpo_loss(*args, beta=0.5)
    assert out.loss.value() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert metrics(out) == pytest.approx(
        {
            "accuracy": 1.0,
            "margin": 1.0,
            "chosen_reward": 0.5,
            "rejected_reward": -0.5,
            "chosen_logprob": -1.0,
            "rejected_logprob": -4.0,
        }
    )
    smoothed = dpo_loss(*args, beta=0.5, label_smoothing=0.25)
    assert smoothed.loss.value() == pytest.approx(
        0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(1)), rel=1e-6
    )


def test_dpo_swap_flips_the_margin() -> None:
    args = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = dpo_loss(*args, beta=0.3)
    back = dpo_loss(*args[[1, 0, 3, 2]], beta=0.3)
    assert metrics(back)["margin"] == pytest.approx(-metrics(there)["margin"], rel=1e-12)
    # -log s(x) + log s(-x) = -x
    torch.testing.assert_close(
        there.loss.total - back.loss.total, -there.metrics["margin"].total, rtol=1e-12, atol=1e-12
    )


def test_dpo_recovers_the_tabular_optimum() -> None:
    """Exact Bradley-Terry labels, full support: pi* is proportional to ref * exp(r / beta)."""
    beta = 0.5
    ref = torch.log_softmax(torch.tensor([0.5, -0.3, 0.1, 0.9], dtype=torch.float64), -1)
    reward = torch.tensor([1.0, 0.2, -0.5, 0.4], dtype=torch.float64)
    optimum = torch.log_softmax(ref + reward / beta, -1)
    first, second = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    weight = torch.sigmoid(reward[first] - reward[second])
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logp = torch.log_softmax(logits, -1)
        terms = [
            w * dpo_loss(logp[a, None], logp[b, None], ref[a, None], ref[b, None], beta).loss.total
            for a, b, w in zip(first, second, weight, strict=True)
        ]
        loss = torch.stack(terms).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.log_softmax(logits.detach(), -1), optimum, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ PPO


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, 1.0),  # good and already likelier: clipped at 1.2, no gradient
        (0.5, 2.0, -1.0, -1.0, 0.0),  # good but less likely: the whole way back is open; d/dlog pi = -A ratio
        (1.5, -2.0, 3.0, 3.0, 0.0),  # bad and likelier: open
        (0.5, -2.0, 1.6, 0.0, 1.0),  # bad and already less likely: clipped at 0.8
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.1, -1.0, 1.1, 1.1, 0.0),
        (1.1, 2.0, -2.2, -2.2, 0.0),  # within the clip, whichever way
        (0.9, 2.0, -1.8, -1.8, 0.0),
        (0.9, -2.0, 1.8, 1.8, 0.0),
        (1.5, 0.0, 0.0, 0.0, 0.0),  # nothing to gain or lose
        (0.5, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clipped_ratio_equals_a_hand_computed_table(
    ratio: float, advantage: float, loss: float, slope: float, clipped: float
) -> None:
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    out = ppo_policy_loss(new, 0 * one, advantage * one, everywhere(one), 0.2)
    (grad,) = torch.autograd.grad(out.loss.total, new)
    assert out.loss.value() == pytest.approx(loss, rel=1e-9)
    assert float(grad) == pytest.approx(slope, rel=1e-9, abs=1e-12)
    assert metrics(out)["clip_fraction"] == clipped
    assert metrics(out)["ratio"] == pytest.approx(ratio)
    assert metrics(out)["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-6, abs=1e-12)


def test_the_first_step_is_the_policy_gradient() -> None:
    logp, advantages = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    new = logp.clone().requires_grad_()
    out = ppo_policy_loss(new, logp, advantages, everywhere(logp), 0.2)
    (grad,) = torch.autograd.grad(out.loss.total, new)
    torch.testing.assert_close(grad, -advantages)
    assert metrics(out) == {"clip_fraction": 0.0, "approx_kl": 0.0, "ratio": 1.0}


def test_approx_kl_is_that_of_the_sampling_policy() -> None:
    """Exact over all actions drawn from the old policy: KL(old || new), not the other way round."""
    old, new = torch.log_softmax(torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), -1)
    each = [ppo_policy_loss(n[None], o[None], n[None], everywhere(n[None]), 0.2) for n, o in zip(new, old, strict=True)]
    mean = sum(float(o.exp()) * metrics(out)["approx_kl"] for o, out in zip(old, each, strict=True))
    assert mean == pytest.approx(float((old.exp() * (old - new)).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "slope", "clipped"),
    [
        (1.5, 1.0, 3.0, 0.2, 1.62, 0.0, 1.0),  # towards the target, past the clip: (1.2 - 3)^2 / 2, no gradient
        (0.5, 1.0, 3.0, 0.2, 3.125, -2.5, 0.0),  # away from it: (0.5 - 3)^2 / 2, the whole gradient
        (0.5, 1.0, -1.0, 0.2, 1.62, 0.0, 1.0),
        (1.5, 1.0, -1.0, 0.2, 3.125, 2.5, 0.0),
        (1.1, 1.0, 3.0, 0.2, 1.805, -1.9, 0.0),  # within the clip
        (1.1, 1.0, -1.0, 0.2, 2.205, 2.1, 0.0),
        (1.1, 1.0, 0.9, 0.2, 0.02, 0.2, 0.0),
        (0.9, 1.0, 3.0, 0.2, 2.205, -2.1, 0.0),
        (1.5, 1.0, 1.1, 0.2, 0.08, 0.4, 0.0),  # past a target that lies within the clip: the way back is open
        (0.5, 1.0, 0.9, 0.2, 0.08, -0.4, 0.0),
        (1.5, 1.0, 1.3, 0.2, 0.02, 0.2, 0.0),  # past the clip and past the target, which lies nearer to the clip
        (1.5, 1.0, 1.4, 0.2, 0.02, 0.0, 1.0),  # and nearer to the value: the clip is the worse of the two
        (0.5, 1.0, 0.6, 0.2, 0.02, 0.0, 1.0),
        (1.5, 1.0, 3.0, None, 1.125, -1.5, 0.0),
    ],
)
def test_the_clipped_value_loss_equals_a_hand_computed_table(
    value: float, old: float, target: float, clip: float | None, loss: float, slope: float, clipped: float
) -> None:
    one = torch.ones(1, dtype=torch.float64)
    values = (value * one).requires_grad_()
    out = ppo_value_loss(values, old * one, target * one, everywhere(one), clip)
    (grad,) = torch.autograd.grad(out.loss.total, values)
    assert out.loss.value() == pytest.approx(loss, rel=1e-9)
    assert float(grad) == pytest.approx(slope, rel=1e-9, abs=1e-12)
    assert metrics(out) == {"value_clip_fraction": clipped, "value": pytest.approx(value)}


def test_entropy_bonus_and_kl_penalty_equal_hand_computed_numbers() -> None:
    mask = torch.tensor([True, True, False])
    bonus = entropy_bonus(torch.tensor([1.0, 2.0, math.nan]), mask)
    assert bonus.loss.value() == -1.5
    assert metrics(bonus) == {"entropy": 1.5}
    new, ref = torch.tensor([0.0, -1.0, math.nan]), torch.tensor([-1.0, 0.0, 0.0])
    assert kl_penalty_loss(new, ref, mask).loss.value() == 0.5
    assert kl_penalty_loss(new, ref, mask, "k3").loss.value() == pytest.approx(math.cosh(1) - 1, rel=1e-6)
    assert metrics(kl_penalty_loss(new, ref, mask)) == {"reference_kl": 0.0}
    with pytest.raises(ValueError, match="k1"):
        kl_penalty_loss(new, ref, mask, "k1")


def test_the_uniform_policy_has_the_greatest_bonus_log_v() -> None:
    logits = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)
    _, entropy = token_logprobs(lambda h: logits, torch.zeros(3, 1), torch.tensor([0, 3, 6]))
    out = entropy_bonus(entropy, everywhere(entropy))
    assert out.loss.value() == pytest.approx(-math.log(7), rel=1e-12)
    assert metrics(out)["entropy"] == pytest.approx(math.log(7), rel=1e-12)
    (grad,) = torch.autograd.grad(out.loss.total, logits)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


def test_combine_weighs_losses_and_joins_metrics() -> None:
    x = torch.tensor([1.0, 2.0])
    out = combine((1.0, mse_loss(x, 0 * x)), (0.5, entropy_bonus(x, everywhere(x))))
    assert out.loss.value() == pytest.approx((5 - 0.5 * 3) / 2)
    assert out.metrics.keys() == {"absolute_error", "entropy"}
    with pytest.raises(ValueError, match="entropy"):
        combine((1.0, entropy_bonus(x, everywhere(x))), (1.0, entropy_bonus(x, everywhere(x))))


# ------------------------------------------------------------------------------------------------ properties

MASKED: dict[str, Callable[[tuple[Tensor, ...], Tensor], LossOutput]] = {
    "policy": lambda x, mask: ppo_policy_loss(x[0], x[1], x[2], mask, 0.2),
    "value": lambda x, mask: ppo_value_loss(x[0], x[1], x[2], mask, 0.2),
    "value without clip": lambda x, mask: ppo_value_loss(x[0], x[1], x[2], mask, None),
    "entropy": lambda x, mask: entropy_bonus(x[0], mask),
    "k2": lambda x, mask: kl_penalty_loss(x[0], x[1], mask, "k2"),
    "k3": lambda x, mask: kl_penalty_loss(x[0], x[1], mask, "k3"),
}
ROWS: dict[str, Callable[[tuple[Tensor, ...]], LossOutput]] = {
    "sft": lambda x: sft_loss(x[0][:, 0]),
    "mse": lambda x: mse_loss(x[0][:, 0], x[1][:, 0]),
    "bradley-terry": lambda x: bradley_terry_loss(x[0][:, 0], x[1][:, 0], x[2][:, 0], 0.01),
    "dpo": lambda x: dpo_loss(x[0][:, 0], x[1][:, 0], x[2][:, 0], x[3][:, 0], 0.1, 0.1),
}


def inputs(seed: int) -> tuple[tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    return tuple(x), torch.rand(6, 5, generator=generator) < 0.5


def loss_and_gradients(
    loss_fn: Callable[[tuple[Tensor, ...]], LossOutput], x: tuple[Tensor, ...]
) -> tuple[LossOutput, list[Tensor]]:
    x = tuple(t.clone().requires_grad_() for t in x)
    out = loss_fn(x)
    grads = torch.autograd.grad(out.loss.total, x, allow_unused=True, materialize_grads=True)
    return out, list(grads)


@pytest.mark.parametrize("name", MASKED)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), filler=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_is_masked_changes_neither_loss_nor_gradient(name: str, seed: int, filler: float) -> None:
    x, mask = inputs(seed)
    dirty = tuple(t.masked_fill(~mask, filler) for t in x)
    expected, expected_grads = loss_and_gradients(lambda t: MASKED[name](t, mask), x)
    found, grads = loss_and_gradients(lambda t: MASKED[name](t, mask), dirty)
    assert torch.equal(found.loss.total, expected.loss.total)
    assert found.loss.count == mask.sum()
    assert metrics(found) == metrics(expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, expected_grad)
        assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("name", [*MASKED, *ROWS])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 5))
def test_micro_batches_add_to_the_batch(name: str, seed: int, cut: int) -> None:
    x, mask = inputs(seed)

    def whole(t: tuple[Tensor, ...], rows: slice) -> LossOutput:
        part = tuple(a[rows] for a in t)
        return MASKED[name](part, mask[rows]) if name in MASKED else ROWS[name](part)

    expected, expected_grads = loss_and_gradients(lambda t: whole(t, slice(None)), x)
    first, first_grads = loss_and_gradients(lambda t: whole(t, slice(cut)), x)
    second, second_grads = loss_and_gradients(lambda t: whole(t, slice(cut, None)), x)
    added = first.loss + second.loss
    assert added.count == expected.loss.count
    torch.testing.assert_close(added.total, expected.loss.total, rtol=1e-12, atol=1e-12)
    for a, b, c in zip(first_grads, second_grads, expected_grads, strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-12, atol=1e-12)
    for key, mean in expected.metrics.items():
        both = first.metrics[key] + second.metrics[key]
        torch.testing.assert_close(both.total, mean.total, rtol=1e-12, atol=1e-12)
        assert both.count == mean.count


@pytest.mark.parametrize("name", [*MASKED, *ROWS])
def test_metrics_carry_no_gradient(name: str) -> None:
    x, mask = inputs(0)
    x = tuple(t.requires_grad_() for t in x)
    out = MASKED[name](x, mask) if name in MASKED else ROWS[name](x)
    assert out.loss.total.requires_grad
    assert not any(mean.total.requires_grad for mean in out.metrics.values())


def test_shapes_that_would_broadcast_are_refused() -> None:
    x, column = torch.zeros(4), torch.zeros(4, 1)
    for call in (
        lambda: mse_loss(column, x),
        lambda: bradley_terry_loss(x, column),
        lambda: bradley_terry_loss(x, x, column),
        lambda: dpo_loss(x, x, x, column, 0.1),
        lambda: ppo_policy_loss(x, x, column, everywhere(x), 0.2),
        lambda: ppo_value_loss(x, x, column, everywhere(x), 0.2),
        lambda: kl_penalty_loss(x, column, everywhere(x)),
        lambda: entropy_bonus(column, everywhere(x)),
    ):
        with pytest.raises(ValueError, match=r"shape \(4.*expected \(4"):
            call()
