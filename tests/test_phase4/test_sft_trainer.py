"""The specification's policy and value networks."""

from __future__ import annotations

import math

import torch

from src.rl.policy import ActorCritic, PolicyNetwork, ValueNetwork


def test_policy_network() -> None:
    torch.manual_seed(0)
    policy = PolicyNetwork(obs_dim=128, action_dim=50, hidden_dim=64)
    obs = torch.randn(4, 128)
    logits = policy(obs)
    assert logits.shape == (4, 50)
    action, log_prob = policy.get_action(obs)
    assert action.shape == log_prob.shape == (4,)
    assert ((action >= 0) & (action < 50)).all()
    torch.testing.assert_close(log_prob, torch.log_softmax(logits, -1)[torch.arange(4), action])
    best, _ = policy.get_action(obs, deterministic=True)
    assert torch.equal(best, logits.argmax(-1))
    many, _ = policy.get_action(obs[:1].expand(500, 128))
    assert many.unique().numel() > 25  # stochastic, and near uniform at the start


def test_value_network() -> None:
    torch.manual_seed(0)
    network, obs = ValueNetwork(obs_dim=128, hidden_dim=64), torch.randn(32, 128)
    assert network(obs).shape == (32,)
    target = obs[:, 0]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(obs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_actor_critic() -> None:
    for shared in (False, True):
        torch.manual_seed(0)
        model = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64, shared=shared)
        obs = torch.randn(1, 128)
        action, log_prob, value = model.get_action_and_value(obs)
        assert action.shape == log_prob.shape == value.shape == (1,)
        batch = obs.repeat(50, 1)
        log_probs, values, entropy = model.evaluate(batch, torch.arange(50))
        assert log_probs.shape == values.shape == entropy.shape == (50,)
        torch.testing.assert_close(log_probs[action.item()], log_prob[0])
        torch.testing.assert_close(values, value.expand(50))
        torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0))
        torch.testing.assert_close(entropy[0], -(log_probs.exp() * log_probs).sum())
        assert 0 < entropy[0] <= math.log(50) + 1e-5
