"""The rollout buffer: the ring, the order of time, mini-batches, and mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from accord.functional.advantages import compute_gae
from accord.rollout.env.buffer import RolloutBatch, RolloutBuffer


def step(t: int, n_envs: int = 2) -> dict[str, Any]:
    """Step t of a made-up history, all of whose numbers are different."""
    env = np.arange(n_envs)
    return {
        "obs": np.stack([np.full(n_envs, t), env, env + t], 1).astype(np.float32),
        "action": 10 * t + env,
        "reward": np.sin(t + env),
        "value": np.cos(2 * t + env),
        "log_prob": -0.1 * t - env,
        "done": (t + env) % 4 == 3,
        "bootstrap": np.where((t + env) % 8 == 7, 5.0, 0.0),
    }


def filled(count: int, n_steps: int = 6, n_envs: int = 2) -> RolloutBuffer:
    buffer = RolloutBuffer(n_steps, 3, n_envs, gamma=0.9, gae_lambda=0.8)
    for t in range(count):
        buffer.add(**step(t, n_envs))
    return buffer


def whole(buffer: RolloutBuffer) -> RolloutBatch:
    (batch,) = buffer.get()
    return batch


@pytest.mark.parametrize("count", [1, 4, 6, 7, 11, 12, 20])
def test_the_newest_steps_are_stored_and_read_in_time_order(count: int) -> None:
    buffer = filled(count)
    held = range(max(0, count - 6), count)
    assert len(buffer) == len(held)
    assert buffer.full == (count >= 6)
    last = torch.tensor([0.4, -0.6])
    buffer.compute(last)
    batch = whole(buffer)
    steps = [step(t) for t in held]
    stacked = {k: torch.as_tensor(np.stack([s[k] for s in steps])) for k in steps[0]}
    advantages, returns = compute_gae(
        *(stacked[k].float() for k in ("reward", "value")),
        stacked["done"],
        last,
        0.9,
        0.8,
        stacked["bootstrap"].float(),
    )
    assert torch.equal(batch.observations, stacked["obs"].flatten(0, 1))
    assert torch.equal(batch.actions, stacked["action"].flatten())
    assert torch.equal(batch.dones, stacked["done"].flatten())
    torch.testing.assert_close(batch.advantages, advantages.flatten(), rtol=0, atol=0)
    torch.testing.assert_close(batch.returns, returns.flatten(), rtol=0, atol=0)
    for name, key in (("rewards", "reward"), ("values", "value"), ("log_probs", "log_prob")):
        torch.testing.assert_close(getattr(batch, name), stacked[key].flatten().float(), rtol=0, atol=0)


def test_mini_batches_are_every_step_once_with_rows_kept_together() -> None:
    buffer = filled(9)
    buffer.compute(0.0)
    reference = whole(buffer)
    batches = list(buffer.get(5, torch.Generator().manual_seed(0)))
    assert [len(b) for b in batches] == [5, 5, 2]
    actions = torch.cat([b.actions for b in batches])
    assert sorted(actions.tolist()) == sorted(reference.actions.tolist())
    assert actions.tolist() != reference.actions.tolist()
    row = {int(a): i for i, a in enumerate(reference.actions)}
    order = [row[int(a)] for a in actions]
    for name in RolloutBatch.__slots__:
        assert torch.equal(torch.cat([getattr(b, name) for b in batches]), getattr(reference, name)[order])
    again = torch.cat([b.actions for b in buffer.get(5, torch.Generator().manual_seed(0))])
    assert torch.equal(again, actions)


def test_arrays_keep_their_shape_and_batches_are_copies() -> None:
    buffer = filled(6)
    names = [n for n, v in vars(buffer).items() if isinstance(v, torch.Tensor)]
    before = {n: getattr(buffer, n).shape for n in names}
    buffer.compute(0.0)
    for batch in buffer.get(4):
        batch.rewards.fill_(99)
    whole(buffer).values.fill_(99)
    assert {n: getattr(buffer, n).shape for n in names} == before
    assert before["observations"] == (6, 2, 3)
    assert before["advantages"] == (6, 2)
    assert buffer.rewards.max() <= 1
    assert buffer.values.max() <= 1


def test_one_environment_takes_tensors_arrays_and_numbers() -> None:
    buffer = RolloutBuffer(3, 2, gamma=1.0, gae_lambda=1.0)
    weight = torch.ones(1, requires_grad=True)
    buffer.add(
        torch.ones(1, 2), torch.tensor([1]), torch.tensor([1.0]), weight * 0.5, weight * -1, torch.tensor([False])
    )
    buffer.add(np.ones(2), np.int64(2), np.float64(2.0), 0.25, -1.5, False)
    buffer.add([1.0, 1.0], 3, 4, torch.tensor(0.125, dtype=torch.bfloat16), -2.0, True, bootstrap=8.0)
    buffer.compute(torch.tensor([100.0]))
    batch = whole(buffer)
    assert batch.actions.tolist() == [1, 2, 3]
    assert batch.returns.tolist() == [15.0, 14.0, 12.0]
    assert not batch.values.requires_grad


def test_observations_may_have_any_shape() -> None:
    buffer = RolloutBuffer(2, (3, 4), n_envs=2)
    obs = torch.randn(2, 3, 4)
    for _ in range(2):
        buffer.add(obs, [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [False, True])
    buffer.compute(0.0)
    assert torch.equal(whole(buffer).observations, torch.cat([obs, obs]))


def test_a_stale_bootstrap_does_not_survive_its_row() -> None:
    buffer = RolloutBuffer(1, 1, gamma=1.0)
    buffer.add([0.0], 0, 1.0, 0.0, 0.0, True, bootstrap=5.0)
    buffer.add([0.0], 0, 1.0, 0.0, 0.0, True)
    buffer.compute(0.0)
    assert whole(buffer).returns.tolist() == [1.0]


def test_reset_empties_the_buffer() -> None:
    buffer = filled(6)
    buffer.compute(0.0)
    buffer.reset()
    assert len(buffer) == 0
    assert not buffer.full
    with pytest.raises(ValueError, match="empty"):
        buffer.compute(0.0)


def test_advantages_of_other_steps_are_not_given_out() -> None:
    buffer = filled(6)
    with pytest.raises(ValueError, match="call compute before get"):
        buffer.get()
    buffer.compute(0.0)
    buffer.add(**step(6))
    with pytest.raises(ValueError, match="call compute before get"):
        buffer.get(2)


def test_mistakes_are_named_and_leave_the_buffer_as_it_was() -> None:
    buffer = filled(2)
    before = buffer.observations.clone()
    for name, wrong, field in (
        ("obs", np.ones((2, 4)), r"observations: one step has shape \(2, 4\), expected \(2, 3\)"),
        ("reward", 1.0, r"rewards: one step has shape \(\), expected \(2,\)"),
        ("log_prob", np.zeros((2, 1)), r"log_probs: one step has shape \(2, 1\)"),
        ("bootstrap", np.zeros(3), r"bootstraps: one step has shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=field):
            buffer.add(**{**step(2), name: wrong})
    assert len(buffer) == 2
    assert torch.equal(buffer.observations, before)
    with pytest.raises(ValueError, match=r"last_value: shape \(3,\), expected \(2,\)"):
        buffer.compute(np.zeros(3))
    with pytest.raises(ValueError, match="n_steps: 0"):
        RolloutBuffer(0, 3)
    buffer.compute(0.0)
    with pytest.raises(ValueError, match="batch_size: 0"):
        buffer.get(0)
