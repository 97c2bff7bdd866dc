"""Advantages and returns: generalized advantage estimation (Schulman et al. 2016, eq. 16), and normalization."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.masked import Array, deviations, keep, mean_square, same_shape, standardize, wide


def _backward_scan(x: Array, decay: Array) -> Array:
    """y[t] = x[t] + decay[t] * y[t + 1] along the first dimension, 0 after its end, in log2(T) whole-array steps.

    After k of them x[t] holds the sum of the 2^k terms from t on, and decay[t] the product of as many.
    """
    x, step = x + 0, 1
    while (tail := len(x) - step) > 0:
        x[:tail] += decay[:tail] * x[step:]
        decay = decay[:-step] * decay[step:]
        step *= 2
    return x


@torch.no_grad()
def compute_gae(
    rewards: Array,
    values: Array,
    dones: Array,
    last_value: Array | float,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    bootstrap: Array | None = None,
) -> tuple[Array, Array]:
    """Advantages and returns (advantages + values) of some steps, time first: (n_steps,) or (n_steps, n_envs).

    Takes and returns tensors or NumPy arrays.  ``dones[t]`` (bool, or 0/1) is true where step t ended its
    episode, so that ``values[t + 1]`` belongs to the next one; ``last_value`` () or (n_envs,) is the
    value of the observation after the last step:

        delta[t] = rewards[t] + gamma * (1 - dones[t]) * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * gae_lambda * (1 - dones[t]) * advantages[t + 1]

    A truncated episode bootstraps from the value function: there ``bootstrap[t]`` holds
    V(final observation), which replaces ``values[t + 1]``; it is read only where ``dones[t]`` is true.
    Raises ValueError for shapes that differ.
    """
    rewards, values = wide(rewards), wide(values)
    same_shape(rewards, values=values, dones=dones)
    if len(rewards) == 0:
        return rewards + 0, rewards + 0
    given, expected = tuple(getattr(last_value, "shape", ())), tuple(values.shape[1:])
    if given not in ((), (1,), expected):
        raise ValueError(f"last_value: shape {given}, expected {expected}")
    ended = dones > 0
    following, decay = values + 0, values + 0
    following[:-1], following[-1] = values[1:], last_value
    following[ended] = 0.0
    if bootstrap is not None:
        same_shape(rewards, bootstrap=bootstrap)
        following[ended] = wide(bootstrap)[ended]
    delta = rewards + gamma * following - values
    decay[:] = gamma * gae_lambda
    decay[ended] = 0.0
    advantages = _backward_scan(delta, decay)
    return advantages, advantages + values


@torch.no_grad()
def token_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) of replies, over the tokens where ``mask`` (B, T) bool is true; 0 elsewhere.

    The last valid token of a row ends the episode: the value after it is 0.  What is masked (padding after the end, a
    tool's tokens in between) is skipped, not counted as a step, and may be NaN.
    Raises ValueError for shapes that differ.
    """
    rewards, values = wide(rewards), wide(values)
    same_shape(rewards, values=values, mask=mask)
    # one scan serves both: a skipped token passes on what comes after it (decay 1, nothing added)
    rewards, values, valid = keep(rewards, mask).T, keep(values, mask).T, mask.T
    onward = _backward_scan(values, (~valid).to(values.dtype))
    following = torch.cat([onward[1:], torch.zeros_like(onward[:1])])
    delta = keep(rewards + gamma * following - values, valid)
    decay = torch.ones_like(delta).masked_fill(valid, gamma * lam)
    advantages = keep(_backward_scan(delta, decay), valid)
    return advantages.T, (advantages + values).T


def normalize_advantages(advantages: Array, mask: Tensor | None = None) -> Array:
    """Mean 0 and standard deviation 1 where ``mask`` (bool, same shape) is true, 0 elsewhere.

    Population standard deviation + 1e-8 below; equal inputs, one alone included, give zeros.
    """
    return standardize(advantages, mask)


def normalize_rewards(rewards: Array, mask: Tensor | None = None) -> Array:
    """As ``normalize_advantages``, for the scores of one batch."""
    return standardize(rewards, mask)


@torch.no_grad()
def explained_variance(values: Array, returns: Array, mask: Array | None = None) -> float:
    """1 - Var(returns - values) / Var(returns) where ``mask`` is true: 1 is perfect, 0 no better than a constant.

    Where the returns do not vary the fraction is undefined and 0 is returned (stable-baselines3 returns NaN, which
    spreads through averages and is not valid JSON).
    """
    same_shape(returns, values=values)
    if mask is not None:
        values, returns = values[mask], returns[mask]
    returns = wide(returns)
    total = mean_square(deviations(returns))
    if total == 0:
        return 0.0
    return float(1 - mean_square(deviations(returns - wide(values))) / total)
