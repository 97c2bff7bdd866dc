"""V-trace: advantages and value targets from actions of an older policy (Espeholt et al. 2018, arXiv 1802.01561).

The conventions are those of ``advantages``: time first with ``dones`` and ``bootstrap``, or replies under a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.functional.advantages import _backward_scan, compute_gae, token_gae
from accord.functional.masked import keep, same_shape, wide


def _correct(
    td: Tensor, log_ratio: Tensor, onward: Tensor, mask: Tensor, lam: float, rho_bar: float, c_bar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages without their ratio, that ratio, and targets - values, from TD errors, time first.

    ``onward`` is the discount, 0 at an episode's end.

    A masked step passes on what comes after it.
    """
    if not 0 <= c_bar <= rho_bar:
        raise ValueError(f"c_bar: {c_bar}, expected between 0 and rho_bar ({rho_bar})")
    ratio = log_ratio.exp().to(td.dtype)  # masked steps may be NaN until ``keep``
    rho, c = ratio.clamp(max=rho_bar), lam * ratio.clamp(max=c_bar)
    errors = _backward_scan(keep(rho * td, mask), torch.where(mask, onward * c, 1.0))
    after = torch.cat([errors[1:], torch.zeros_like(errors[:1])])
    return keep(td + lam * onward * after, mask), keep(rho, mask), keep(errors, mask)


@torch.no_grad()
def compute_vtrace(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    last_value: Tensor | float,
    gamma: float = 0.99,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Policy-gradient advantages and value targets vs of some steps, time first: (n_steps,) or (n_steps, n_envs).

    ``logprobs`` are those of the policy that learns, ``old_logprobs`` those of the one that acted; the rest is as in
    ``compute_gae``, and so is the order of what comes back.  With ratio[t] = exp(logprobs[t] - old_logprobs[t]) and
    V' the value that follows a step (``values[t + 1]``, ``bootstrap[t]`` where it was cut, 0 where it ended):

        rho[t] = min(rho_bar, ratio[t]),  c[t] = lam * min(c_bar, ratio[t])
        vs[t] = values[t] + rho[t] * (rewards[t] + gamma * V' - values[t]) + gamma * c[t] * (vs[t + 1] - V')
        advantages[t] = rho[t] * (rewards[t] + gamma * ((1 - lam) * V' + lam * vs[t + 1]) - values[t])

    (Section 4.1, eq. 1 with remarks 1 and 2; section 4.2 at lam 1, with lam as in rlax.)  At an episode's end and
    after the last step V' replaces vs[t + 1].  ``rho_bar`` decides which policy is valued, pi itself at infinity;
    ``c_bar`` only how fast.  Where both policies are one and the limits are 1 or more, this is GAE at ``lam``, and at
    lam 1 the targets are n-step returns.
    Carries no gradient.  Raises ValueError for shapes that differ, and for ``c_bar`` above ``rho_bar``.
    """
    limits = (gamma, lam, rho_bar, c_bar, bootstrap)
    advantages, rho, targets = compute_vtrace_parts(logprobs, old_logprobs, rewards, values, dones, last_value, *limits)
    return rho * advantages, targets


@torch.no_grad()
def compute_vtrace_parts(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    last_value: Tensor | float,
    gamma: float = 0.99,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``compute_vtrace`` with the advantages as two factors, the second of which is rho; then the value targets.

    A baseline may be subtracted from the first alone: off-policy the mean of rho * gradient of log pi is 0 (without a
    limit), and that of the gradient of log pi is not.
    """
    same_shape(rewards, logprobs=logprobs, old_logprobs=old_logprobs)
    td, _ = compute_gae(rewards, values, dones, last_value, gamma, 0.0, bootstrap)  # at lambda 0: the TD errors
    onward = gamma * (~dones.bool()).to(td.dtype)
    everywhere = torch.ones_like(td, dtype=torch.bool)
    log_ratio = wide(logprobs) - wide(old_logprobs)
    advantages, rho, errors = _correct(td, log_ratio, onward, everywhere, lam, rho_bar, c_bar)
    return advantages, rho, wide(values) + errors


@torch.no_grad()
def token_vtrace(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Policy-gradient advantages and value targets (B, T) of replies, over the tokens where ``mask`` is true; 0 elsewhere.

    As ``compute_vtrace``, with the episodes of ``token_gae``: the last valid token of a row ends its episode; what is
    masked is skipped, not counted as a step, and may be NaN.
    Raises ValueError for shapes that differ, and for ``c_bar`` above ``rho_bar``.
    """
    limits = (gamma, lam, rho_bar, c_bar)
    advantages, rho, targets = token_vtrace_parts(logprobs, old_logprobs, rewards, values, mask, *limits)
    return rho * advantages, targets


@torch.no_grad()
def token_vtrace_parts(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``token_vtrace`` with the advantages as two factors, as ``compute_vtrace_parts``."""
    same_shape(rewards, logprobs=logprobs, old_logprobs=old_logprobs)
    td, _ = token_gae(rewards, values, mask, gamma, 0.0)
    log_ratio, onward = wide(logprobs) - wide(old_logprobs), torch.full_like(td.T, gamma)
    advantages, rho, errors = _correct(td.T, log_ratio.T, onward, mask.T, lam, rho_bar, c_bar)
    return advantages.T, rho.T, keep(wide(values), mask) + errors.T
