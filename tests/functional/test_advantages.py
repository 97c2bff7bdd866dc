"""GAE against its definition as a double sum, at its limits, across the ends of episodes and under masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from accord.functional.advantages import (
    compute_gae,
    explained_variance,
    normalize_advantages,
    normalize_rewards,
    token_gae,
)


def experience(seed: int, *shape: int, p_done: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values, bootstrap = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    dones = torch.rand(*shape, generator=generator) < p_done
    return rewards, values, dones, bootstrap * (torch.rand(*shape, generator=generator) < 0.5)


def double_sum(
    r: np.ndarray, v: np.ndarray, done: np.ndarray, last: float, gamma: float, lam: float, boot: np.ndarray
) -> np.ndarray:
    """The definition (eq. 16): A[t] = sum over l of (gamma lambda)^l delta[t + l], up to the end of the episode."""
    steps = len(r)
    out = np.zeros(steps)
    for t in range(steps):
        for k in range(t, steps):
            following = boot[k] if done[k] else (v[k + 1] if k + 1 < steps else last)
            out[t] += (gamma * lam) ** (k - t) * (r[k] + gamma * following - v[k])
            if done[k]:
                break
    return out


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 33),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    p_done=st.floats(0, 1),
)
def test_gae_is_the_double_sum(seed: int, steps: int, gamma: float, lam: float, p_done: float) -> None:
    rewards, values, dones, bootstrap = experience(seed, steps, 3, p_done=p_done)
    last = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    advantages, returns = compute_gae(rewards, values, dones, last, gamma, lam, bootstrap)
    for e in range(3):
        expected = double_sum(
            *(x[:, e].numpy() for x in (rewards, values, dones)), last[e].item(), gamma, lam, bootstrap[:, e].numpy()
        )
        np.testing.assert_allclose(advantages[:, e], expected, rtol=1e-9, atol=1e-10)
        alone, _ = compute_gae(rewards[:, e], values[:, e], dones[:, e], last[e], gamma, lam, bootstrap[:, e])
        torch.testing.assert_close(alone, advantages[:, e])
    torch.testing.assert_close(returns, advantages + values)


@pytest.mark.parametrize("steps", [0, 1, 2, 32, 33])
def test_arrays_are_served_as_tensors_are(steps: int) -> None:
    given = experience(3, steps, 2, p_done=0.2)
    rewards, values, dones, bootstrap = (x.float() for x in given)
    last = torch.tensor([0.5, -1.0])
    expected = compute_gae(rewards, values, dones.bool(), last, 0.99, 0.95, bootstrap)
    arrays = [x.numpy().copy() for x in (rewards, values, dones.bool(), last, bootstrap)]
    before = [x.copy() for x in arrays]
    found = compute_gae(arrays[0], arrays[1], arrays[2], arrays[3], 0.99, 0.95, arrays[4])
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, np.ndarray)
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6, atol=1e-6)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)
    if steps:
        whole = normalize_advantages(found[0])
        np.testing.assert_allclose(whole, normalize_advantages(expected[0]).numpy(), rtol=1e-5, atol=1e-6)
        kept = np.ones(found[0].shape, dtype=bool)
        kept[0] = False
        for mask in (None, kept):
            plain = None if mask is None else torch.from_numpy(mask)
            one = explained_variance(arrays[1], found[1], mask)
            assert one == pytest.approx(explained_variance(values, expected[1], plain), rel=1e-5, abs=1e-6)


def test_gae_equals_hand_computed_numbers() -> None:
    """gamma = lambda = 1/2; the second step ends an episode, so the third does not affect the first two."""
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 8.0, 16.0])
    advantages, returns = compute_gae(rewards, values, torch.tensor([0.0, 1.0, 0.0]), 32.0, 0.5, 0.5)
    # deltas: 1 + 4 - 4 = 1;  2 - 8 = -6;  3 + 16 - 16 = 3
    assert advantages.tolist() == [1 - 6 / 4, -6.0, 3.0]
    assert returns.tolist() == [3.5, 2.0, 19.0]


def test_gae_is_the_specified_recursion() -> None:
    rewards, values, dones, _ = experience(3, 40)
    advantages, _ = compute_gae(rewards, values, dones, 0.7)
    following, after = 0.7, 0.0
    for t in reversed(range(40)):
        alive = 1 - float(dones[t])
        delta = rewards[t] + 0.99 * alive * following - values[t]
        after = float(delta + 0.99 * 0.95 * alive * after)
        following = float(values[t])
        assert advantages[t].item() == pytest.approx(after, rel=1e-10)


def test_at_lambda_0_the_advantage_is_the_td_error() -> None:
    rewards, values, dones, _ = experience(1, 20)
    advantages, _ = compute_gae(rewards, values, dones, 0.3, 0.9, 0.0)
    following = torch.cat([values[1:], torch.tensor([0.3], dtype=torch.float64)]) * ~dones
    torch.testing.assert_close(advantages, rewards + 0.9 * following - values, rtol=1e-12, atol=1e-12)


def test_at_lambda_1_and_gamma_1_it_is_the_return_less_the_value() -> None:
    rewards, values, _, _ = experience(2, 20)
    advantages, returns = compute_gae(rewards, values, torch.zeros(20), 0.3, 1.0, 1.0)
    to_go = rewards.flip(0).cumsum(0).flip(0) + 0.3
    torch.testing.assert_close(returns, to_go, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(advantages, to_go - values, rtol=1e-12, atol=1e-12)


def following(values: Tensor, dones: Tensor, bootstrap: Tensor, last: float) -> list[float]:
    """The value after each step."""
    after = [*values[1:].tolist(), last]
    return [float(b) if d else v for v, d, b in zip(after, dones, bootstrap, strict=True)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), p_done=st.floats(0, 1))
def test_lambda_0_and_1_across_ends_and_cuts(seed: int, gamma: float, p_done: float) -> None:
    """At 0 the TD error; at 1 the discounted rewards to the episode's end, and the value there where it was cut."""
    rewards, values, dones, bootstrap = experience(seed, 17, p_done=p_done)
    ahead = following(values, dones, bootstrap, 0.3)
    errors, _ = compute_gae(rewards, values, dones, 0.3, gamma, 0.0, bootstrap)
    _, returns = compute_gae(rewards, values, dones, 0.3, gamma, 1.0, bootstrap)
    for t in range(17):
        assert float(errors[t]) == pytest.approx(float(rewards[t]) + gamma * ahead[t] - float(values[t]), abs=1e-12)
        end = next((k for k in range(t, 17) if dones[k]), 16)
        to_go = sum(gamma ** (k - t) * float(rewards[k]) for k in range(t, end + 1))
        assert float(returns[t]) == pytest.approx(to_go + gamma ** (end - t + 1) * ahead[end], rel=1e-9, abs=1e-10)


def test_it_is_the_weighted_mean_of_the_n_step_advantages() -> None:
    """The derivation of Schulman et al.: weights (1 - lambda) lambda^(n - 1), the rest on the longest return there is."""
    rewards, values, dones, bootstrap = experience(8, 15, p_done=0.15)
    ahead = following(values, dones, bootstrap, 0.3)
    advantages, _ = compute_gae(rewards, values, dones, 0.3, 0.9, 0.8, bootstrap)
    for t in range(15):
        end = next((k for k in range(t, 15) if dones[k]), 14)
        n_step = [
            sum(0.9**k * float(rewards[t + k]) for k in range(n)) + 0.9**n * ahead[t + n - 1] - float(values[t])
            for n in range(1, end - t + 2)
        ]
        weights = [0.2 * 0.8**n for n in range(len(n_step) - 1)] + [0.8 ** (len(n_step) - 1)]
        assert float(advantages[t]) == pytest.approx(np.dot(weights, n_step), rel=1e-9, abs=1e-10)


def test_truncation_is_not_termination() -> None:
    rewards, values, dones = torch.ones(2), torch.zeros(2), torch.tensor([True, True])
    ended, _ = compute_gae(rewards, values, dones, 9.0, 0.5, 1.0)
    cut, _ = compute_gae(rewards, values, dones, 9.0, 0.5, 1.0, bootstrap=torch.tensor([4.0, 0.0]))
    assert ended.tolist() == [1.0, 1.0]
    assert cut.tolist() == [3.0, 1.0]


def test_bootstrap_is_read_only_where_an_episode_ends() -> None:
    rewards, values, dones, bootstrap = experience(5, 12)
    clean = compute_gae(rewards, values, dones, 1.0, bootstrap=torch.where(dones, bootstrap, 0.0))
    stray = compute_gae(rewards, values, dones, 1.0, bootstrap=torch.where(dones, bootstrap, 77.0))
    torch.testing.assert_close(clean, stray, rtol=0, atol=0)


def test_float32_is_as_good_as_the_loop_and_carries_no_gradient() -> None:
    rewards, values, dones, _ = experience(4, 2048, p_done=0.01)
    exact, _ = compute_gae(rewards, values, dones, 0.0)
    found, _ = compute_gae(rewards.float(), values.float().requires_grad_(), dones, 0.0)
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=2e-5)


def test_wrong_shapes_are_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"values: shape \(4,\), expected \(4, 2\)"):
        compute_gae(x, x[:, 0], x, 0.0)
    with pytest.raises(ValueError, match=r"last_value: shape \(3,\), expected \(2,\)"):
        compute_gae(x, x, x, torch.zeros(3))
    with pytest.raises(ValueError, match="mask"):
        token_gae(x, x, torch.ones(4, dtype=torch.bool))
    empty, _ = compute_gae(x[:0], x[:0], x[:0], 0.0)
    assert empty.shape == (0, 2)


# ------------------------------------------------------------------------------------------------ tokens


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1), holes=st.booleans())
def test_token_gae_is_the_double_sum_over_unmasked_tokens(seed: int, gamma: float, lam: float, holes: bool) -> None:
    rewards, values, scattered, _ = experience(seed, 5, 9, p_done=0.6)
    lengths = torch.arange(5) * 2 + 1
    mask = scattered if holes else torch.arange(9) < lengths[:, None]
    nan = float("nan")
    advantages, returns = token_gae(rewards.masked_fill(~mask, nan), values.masked_fill(~mask, nan), mask, gamma, lam)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()
    for row, keep in enumerate(mask):
        r, v = rewards[row][keep].numpy(), values[row][keep].numpy()
        done = np.arange(len(r)) == len(r) - 1
        expected = double_sum(r, v, done, nan, gamma, lam, np.zeros(len(r)))
        np.testing.assert_allclose(advantages[row][keep], expected, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(returns[row][keep], expected + v, rtol=1e-9, atol=1e-10)


def test_token_gae_defaults_are_those_of_lm_human_preferences() -> None:
    advantages, _ = token_gae(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.ones(1, 2, dtype=torch.bool)
    )
    # deltas: 0 + 0.25 - 0.5 = -0.25;  1 - 0.25 = 0.75
    torch.testing.assert_close(advantages, torch.tensor([[-0.25 + 0.95 * 0.75, 0.75]]), rtol=1e-6, atol=0)


def test_token_gae_of_an_empty_reply_is_zero() -> None:
    x = torch.full((2, 3), float("nan"))
    advantages, returns = token_gae(x, x, torch.zeros(2, 3, dtype=torch.bool))
    assert (advantages == 0).all()
    assert (returns == 0).all()


# ------------------------------------------------------------------------------------------------ scales


@pytest.mark.parametrize("normalize", [normalize_advantages, normalize_rewards])
def test_normalized_values_have_mean_0_and_population_deviation_1(normalize) -> None:  # type: ignore[no-untyped-def]
    torch.testing.assert_close(normalize(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]), rtol=1e-6, atol=0)
    x, _, mask, _ = experience(6, 50, 4, p_done=0.5)
    out = normalize(x.masked_fill(~mask, float("nan")), mask)
    np.testing.assert_allclose(out[mask], (x[mask] - x[mask].mean()) / x[mask].std(correction=0), rtol=1e-6)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, -1000.1, 3e6])
def test_equal_inputs_normalize_to_zeros(constant: float) -> None:
    assert (normalize_advantages(torch.full((33,), constant)) == 0).all()
    assert normalize_rewards(torch.tensor([constant])).item() == 0


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((4,), 7.0), returns) == 0
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75, rel=1e-6)
    assert explained_variance(-returns, returns) == pytest.approx(-3, rel=1e-6)
    assert explained_variance(returns, torch.full((4,), 0.1)) == 0
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(returns, returns.masked_fill(~mask, math.nan), mask) == 1
