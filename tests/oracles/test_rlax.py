"""V-trace against rlax, environment by environment and reply by reply.

rlax needs jax and half a gigabyte with it, so it is in no extra: ``pip install rlax`` where this is to run.  It clips c
at 1, takes one sequence of one discount a step, and knows no truncation: gamma V(final observation) goes into the reward.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.functional.vtrace import compute_vtrace, token_vtrace

os.environ.setdefault("JAX_PLATFORMS", "cpu")
rlax: Any = pytest.importorskip("rlax")

pytestmark = pytest.mark.oracle

STEPS, ENVS, GAMMA = 60, 4, 0.96
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def of_rlax(
    rewards: np.ndarray,
    values: np.ndarray,
    following: np.ndarray,
    discounts: np.ndarray,
    ratios: np.ndarray,
    lam: float,
    rho_bar: float,
) -> tuple[Tensor, Tensor]:
    """(T,) policy-gradient advantages and value targets of one sequence."""
    given = (np.asarray(x, dtype=np.float32) for x in (values, following, rewards, discounts, ratios))
    output = rlax.vtrace_td_error_and_advantage(*given, np.float32(lam), rho_bar, rho_bar)
    return torch.tensor(np.asarray(output.pg_advantage)), torch.tensor(values + np.asarray(output.errors))


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize("rho_bar", [1.0, 1.7])
@pytest.mark.parametrize("lam", [1.0, 0.8, 0.0])
@pytest.mark.parametrize("last_done", [False, True])
def test_vtrace_over_steps_is_rlaxs(draw: np.random.Generator, lam: float, rho_bar: float, last_done: bool) -> None:
    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float32)

    rewards, values, last = normal(STEPS, ENVS), normal(STEPS, ENVS), normal(ENVS)
    old, new = normal(STEPS, ENVS) - 1, normal(STEPS, ENVS) - 1
    dones = draw.random((STEPS, ENVS)) < 0.15
    dones[-1] = last_done
    cut = dones & (draw.random((STEPS, ENVS)) < 0.5)
    bootstrap = np.where(cut, normal(STEPS, ENVS), 0)
    assert 0.2 < (np.exp(new - old) > rho_bar).mean() < 0.8

    tensors = [torch.tensor(x) for x in (new, old, rewards, values, dones, last)]
    advantages, targets = compute_vtrace(*tensors, GAMMA, lam, rho_bar, bootstrap=torch.tensor(bootstrap))
    following = np.concatenate([values[1:], last[None]])
    whole = rewards + GAMMA * bootstrap
    discounts = GAMMA * ~dones
    for e in range(ENVS):
        arrays = (x[:, e] for x in (whole, values, following, discounts, np.exp(new - old)))
        wanted_advantages, wanted_targets = of_rlax(*arrays, lam, rho_bar)
        torch.testing.assert_close(advantages[:, e], wanted_advantages, **CLOSE)
        torch.testing.assert_close(targets[:, e], wanted_targets, **CLOSE)


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_vtrace_over_tokens_is_rlaxs(draw: np.random.Generator, lam: float) -> None:
    """The unmasked tokens alone are the sequence; masked ones, between them too, are NaN."""
    rows, length = 5, 17
    mask = draw.random((rows, length)) < 0.7
    mask[:, 0], mask[0] = True, True
    mask[1, 1:] = False

    def kept() -> np.ndarray:
        return np.where(mask, draw.normal(size=mask.shape), np.nan).astype(np.float32)

    rewards, values, old, new = kept(), kept(), kept(), kept()
    tensors = [torch.tensor(x) for x in (new, old, rewards, values, mask)]
    advantages, targets = token_vtrace(*tensors, 0.99, lam, 1.3)
    for b, row in enumerate(mask):
        v = values[b, row]
        discounts = np.full(len(v), 0.99)
        discounts[-1] = 0
        arrays = (rewards[b, row], v, np.append(v[1:], 0), discounts, np.exp(new - old)[b, row])
        wanted_advantages, wanted_targets = of_rlax(*arrays, lam, 1.3)
        torch.testing.assert_close(advantages[b, row], wanted_advantages, **CLOSE)
        torch.testing.assert_close(targets[b, row], wanted_targets, **CLOSE)
