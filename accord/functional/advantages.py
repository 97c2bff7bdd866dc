"""Advantages and returns: generalised advantage estimation (Schulman et al. 2016, eq. 16), and their scales."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.masked import keep, masked_var, same_shape, standardise, wide


def _backward_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y[t] = x[t] + decay[t] * y[t + 1] along the first dimension, 0 after its end, in log2(T) whole-array steps."""
    step, length = 1, len(x)
    while step < length:
        tail = length - step
        x = torch.cat([x[:tail] + decay[:tail] * x[step:], x[tail:]])
        decay = torch.cat([decay[:tail] * decay[step:], torch.zeros_like(decay[tail:])])
        step *= 2
    return x


def _after_last(values: Tensor, last_value: Tensor | float) -> Tensor:
    """(1, …) the value that follows the last row of ``values``."""
    last = torch.as_tensor(last_value, dtype=values.dtype, device=values.device)
    shape = values.shape[1:]
    if last.numel() == 1:
        return last.reshape(()).expand(1, *shape)
    if last.shape != shape:
        raise ValueError(f"last_value: shape {tuple(last.shape)}, expected {tuple(shape)}")
    return last[None]


@torch.no_grad()
def compute_gae(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    last_value: Tensor | float,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantages + values) of some steps, time first: (n_steps,) or (n_steps, n_envs).

    ``dones[t]`` (bool, or 0/1) is true where step t ended its episode, so that what ``values[t + 1]`` describes is
    already the next one; ``last_value`` () or (n_envs,) is the value of what was observed after the last step:

        delta[t] = rewards[t] + gamma * (1 - dones[t]) * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * gae_lambda * (1 - dones[t]) * advantages[t + 1]

    An episode that was cut (truncated), not ended, goes on in the value function: there ``bootstrap[t]`` holds
    V(final observation), which takes the place of ``values[t + 1]``; it is read only where ``dones[t]`` is true.
    Raises ValueError for shapes that differ.
    """
    rewards, values = wide(rewards), wide(values)
    same_shape(rewards, values=values, dones=dones)
    if len(rewards) == 0:
        return rewards.clone(), rewards.clone()
    ended = dones.bool()
    following = torch.cat([values[1:], _after_last(values, last_value)])
    if bootstrap is None:
        following = keep(following, ~ended)
    else:
        same_shape(rewards, bootstrap=bootstrap)
        following = torch.where(ended, bootstrap.to(values), following)
    delta = rewards + gamma * following - values
    advantages = _backward_scan(delta, gamma * gae_lambda * (~ended).to(delta.dtype))
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


def _standardised(x: Tensor, mask: Tensor | None) -> Tensor:
    return standardise(x, torch.ones_like(x, dtype=torch.bool) if mask is None else mask)


def normalize_advantages(advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over what ``mask`` (bool, same shape) keeps, 0 elsewhere.

    Population standard deviation + 1e-8 below; equal inputs, one alone included, give zeros.
    """
    return _standardised(advantages, mask)


def normalize_rewards(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """As ``normalize_advantages``, for the scores of one batch (running statistics belong to whoever collects)."""
    return _standardised(rewards, mask)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> float:
    """1 - Var(returns - values) / Var(returns) over what ``mask`` keeps: 1 is perfect, 0 no better than a constant.

    Where the returns do not vary the fraction is undefined and 0 is given (stable-baselines3 gives NaN, which would
    poison an average and is no JSON).
    """
    same_shape(returns, values=values)
    mask = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask
    total = masked_var(returns, mask)
    if total == 0:
        return 0.0
    return float(1 - masked_var(wide(returns) - wide(values), mask) / total)
