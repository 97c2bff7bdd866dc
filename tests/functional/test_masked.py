"""Masked sums and moments: numpy as the oracle, NaN under the mask, exact additivity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.functional.masked import keep, masked_mean, masked_var, mean_of, mean_over, whiten


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3 + 2
    return x, torch.rand(5, 7, generator=generator) < 0.6


def test_moments_agree_with_numpy() -> None:
    x, mask = data()
    kept = x[mask].numpy()
    np.testing.assert_allclose(masked_mean(x, mask), kept.mean(), rtol=1e-12)
    np.testing.assert_allclose(masked_var(x, mask), kept.var(), rtol=1e-12)
    np.testing.assert_allclose(masked_var(x, mask, unbiased=True), kept.var(ddof=1), rtol=1e-12)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_is_lm_human_preferences(shift_mean: bool) -> None:
    x, mask = data()
    kept = x[mask].numpy()
    expected = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8) + (0 if shift_mean else kept.mean())
    out = whiten(x, mask, shift_mean)
    np.testing.assert_allclose(out[mask], expected, rtol=1e-12)
    assert (out[~mask] == 0).all()


def test_whiten_uses_the_population_variance() -> None:
    out = whiten(torch.tensor([1.0, 3.0]), torch.tensor([True, True]))
    torch.testing.assert_close(out, torch.tensor([-1.0, 1.0]), rtol=1e-6, atol=0)  # n - 1 would give 0.7071


def test_whiten_without_the_shift_keeps_the_sign() -> None:
    rewards = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.1])
    mask = torch.ones(6, dtype=torch.bool)
    assert whiten(rewards, mask)[5] < 0
    assert whiten(rewards, mask, shift_mean=False)[5] > 0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -3e5])
def test_equal_values_whiten_to_exact_zeros(constant: float) -> None:
    x = torch.full((3, 11), constant)
    assert (whiten(x, torch.ones_like(x, dtype=torch.bool)) == 0).all()


def test_an_empty_mask_gives_zero_not_nan() -> None:
    x, nothing = torch.full((4,), float("nan")), torch.zeros(4, dtype=torch.bool)
    assert mean_over(x, nothing).value() == 0
    assert masked_mean(x, nothing) == 0
    assert masked_var(x, nothing) == 0
    assert (whiten(x, nothing) == 0).all()


def test_nan_under_the_mask_reaches_no_gradient() -> None:
    x, mask = data()
    x = x.masked_fill(~mask, float("nan")).requires_grad_()
    whiten(x, mask).square().mul(torch.arange(35.0).reshape(5, 7)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[~mask] == 0).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 4))
def test_parts_add_to_the_whole(seed: int, cut: int) -> None:
    x, mask = data(seed)
    parts = mean_over(x[:cut], mask[:cut]) + mean_over(x[cut:], mask[cut:])
    whole = mean_over(x, mask)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-12, atol=1e-12)


def test_low_precision_is_summed_in_float32() -> None:
    x = torch.ones(4096, dtype=torch.bfloat16)
    assert mean_of(x).total.dtype is torch.float32
    assert mean_over(x, x > 0).value() == 1
    assert mean_of(x).total == 4096


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask: shape \(3, 1\), expected \(3,\)"):
        keep(torch.zeros(3), torch.ones(3, 1, dtype=torch.bool))
