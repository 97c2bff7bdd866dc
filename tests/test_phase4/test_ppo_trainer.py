"""The specification's rollout buffer, PPO update and GAE."""

from __future__ import annotations

import pytest
import torch

from accord.functional.losses.policy import entropy_bonus, ppo_policy_loss, ppo_value_loss
from accord.functional.losses.terms import combine
from src.rl.policy import ActorCritic
from src.rl.rollout_buffer import RolloutBuffer
from src.training.rl_utils import compute_gae, explained_variance, normalize_advantages, normalize_rewards


def test_rollout_buffer() -> None:
    torch.manual_seed(0)
    model = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64)
    buffer = RolloutBuffer(n_steps=32, obs_dim=128, gamma=0.99, gae_lambda=0.95)
    rewards = torch.randn(40)
    for reward in rewards:
        assert buffer.full == (len(buffer) == 32)
        obs = torch.randn(1, 128)
        action, log_prob, value = model.get_action_and_value(obs)
        buffer.add(obs, action, reward[None], value, log_prob, torch.tensor([False]))
    assert buffer.full
    buffer.compute(last_value=0.0)
    (steps,) = buffer.get()
    assert torch.equal(steps.rewards, rewards[8:])  # circular: the newest 32, oldest first
    expected, returns = compute_gae(steps.rewards, steps.values, steps.dones, 0.0, 0.99, 0.95)
    torch.testing.assert_close(steps.advantages, expected)
    torch.testing.assert_close(steps.returns, returns)
    log_probs, values, _ = model.evaluate(steps.observations, steps.actions)
    torch.testing.assert_close(log_probs, steps.log_probs)
    torch.testing.assert_close(values, steps.values)
    assert [len(batch) for batch in buffer.get(batch_size=12)] == [12, 12, 8]
    buffer.reset()
    assert len(buffer) == 0


def test_ppo_update() -> None:
    """A bandit that pays for actions below 10 of 50: PPO must find it, and must not move far in one update."""
    torch.manual_seed(0)
    model = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
    buffer = RolloutBuffer(n_steps=32, obs_dim=128, n_envs=4)
    paid: list[float] = []
    for update in range(30):
        for _ in range(32):
            obs = torch.randn(4, 128)
            with torch.no_grad():
                action, log_prob, value = model.get_action_and_value(obs)
            buffer.add(obs, action, (action < 10).float(), value, log_prob, torch.ones(4, dtype=torch.bool))
        buffer.compute(last_value=0.0)
        paid.append(buffer.rewards.mean().item())
        for epoch in range(4):
            for i, batch in enumerate(buffer.get(batch_size=64)):
                log_probs, values, entropy = model.evaluate(batch.observations, batch.actions)
                mask = torch.ones_like(batch.dones)
                policy = ppo_policy_loss(log_probs, batch.log_probs, normalize_advantages(batch.advantages), mask, 0.2)
                value = ppo_value_loss(values, batch.values, batch.returns, mask, None)
                out = combine((1.0, policy), (0.5, value), (0.001, entropy_bonus(entropy, mask)))
                if epoch == i == 0:  # nothing has moved since sampling
                    assert out.metrics["ratio"].value() == pytest.approx(1, abs=1e-6)
                    assert out.metrics["clip_fraction"].value() == 0
                optimizer.zero_grad()
                (out.loss.total / out.loss.count).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, error_if_nonfinite=True)
                optimizer.step()
                if update == 0:
                    assert out.metrics["approx_kl"].value() < 0.1
    assert paid[0] < 0.4
    assert sum(paid[-5:]) / 5 > 0.9


def test_gae_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 32, generator=generator, dtype=torch.float64)
    dones = torch.rand(32, generator=generator) < 0.2
    advantages, returns = compute_gae(rewards, values, dones, 0.5, gamma=0.99, gae_lambda=0.95)
    following, after = 0.5, 0.0
    for t in reversed(range(32)):  # the recursion as specified
        alive = 1 - float(dones[t])
        delta = rewards[t].item() + 0.99 * alive * following - values[t].item()
        after = delta + 0.99 * 0.95 * alive * after
        following = values[t].item()
        assert advantages[t].item() == pytest.approx(after, rel=1e-9)
    torch.testing.assert_close(returns, advantages + values)
    for normalize in (normalize_advantages, normalize_rewards):
        scaled = normalize(advantages)
        assert scaled.mean().item() == pytest.approx(0, abs=1e-12)
        assert scaled.std(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.zeros_like(returns), returns) == pytest.approx(0, abs=1e-12)
