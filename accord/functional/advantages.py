"""Advantages and returns: generalised advantage estimation (Schulman et al. 2016, eq. 16), and their scales."""

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

    Tensors, or numpy's arrays: then the results are such.  ``dones[t]`` (bool, or 0/1) is true where step t ended its
    episode, so that what ``values[t + 1]`` describes is already the next one; ``last_value`` () or (n_envs,) is the
    value of what was observed after the last step:

        delta[t] = rewards[t] + gamma * (1 - dones[t]) * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * gae_lambda * (1 - dones[t]) * advantages[t + 1]

    An episode that was cut (truncated), not ended, goes on in the value function: there ``bootstrap[t]`` holds
    V(final observation), which takes the place of ``values[t + 1]``; it is read only where ``dones[t]`` is true.
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
    """Advantages and returns (B, T) of replies, over the tokens that ``mask`` (B, T) bool keeps; 0 elsewhere.

    The last kept token of a row ends the episode: the value after it is 0.  What is masked (padding after the end, a
    tool's tokens in between) is skipped, not counted as a step, and may be NaN.
    Raises ValueError for shapes that differ.
    """
    rewards, values = wide(rewards), wide(values)
    same_shape(rewards, values=values, mask=mask)
    # one scan serves both: a skipped token hands on what stands behind it (decay 1, nothing added)
    rewards, kept_values, kept = keep(rewards, mask).T, keep(values, mask).T, mask.T
    onward = _backward_scan(kept_values, (~kept).to(values.dtype))
    following = torch.cat([onward[1:], torch.zeros_like(onward[:1])])
    delta = keep(rewards + gamma * following - kept_values, kept)
    decay = torch.ones_like(delta).masked_fill(kept, gamma * lam)
    advantages = keep(_backward_scan(delta, decay), kept)
    return advantages.T, (advantages + kept_values).T


def normalize_advantages(advantages: Array, mask: Tensor | None = None) -> Array:
    """Mean 0 and standard deviation 1 over what ``mask`` (bool, same shape) keeps, 0 elsewhere.

    Population standard deviation + 1e-8 below; equal inputs, one alone included, give zeros.
    """
    return standardize(advantages, mask)


def normalize_rewards(rewards: Array, mask: Tensor | None = None) -> Array:
    """As ``normalize_advantages``, for the scores of one batch (running statistics belong to whoever collects)."""
    return standardize(rewards, mask)


@torch.no_grad()
def explained_variance(values: Array, returns: Array, mask: Array | None = None) -> float:
    """1 - Var(returns - values) / Var(returns) over what ``mask`` keeps: 1 is perfect, 0 no better than a constant.

    Where the returns do not vary the fraction is undefined and 0 is given (stable-baselines3 gives NaN, which would
    poison an average and is no JSON).
    """
    same_shape(returns, values=values)
    if mask is not None:
        values, returns = values[mask], returns[mask]
    returns = wide(returns)
    total = mean_square(deviations(returns))
    if total == 0:
        return 0.0
    return float(1 - mean_square(deviations(returns - wide(values))) / total)
