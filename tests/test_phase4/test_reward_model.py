"""The specification's reward model: a two-layer MLP trained by regression."""

from __future__ import annotations

import pytest
import torch

from accord.functional.losses.supervised import mse_loss
from accord.models.reward import RewardMLP


def test_reward_model_forward() -> None:
    torch.manual_seed(0)
    model = RewardMLP(input_dim=128, hidden_dim=64, num_layers=2)
    features = torch.randn(8, 128)
    rewards = model(features)
    assert rewards.shape == (8,)
    assert torch.isfinite(rewards).all()
    torch.testing.assert_close(model(features[2:5]), rewards[2:5])  # rows do not see one another
    rewards.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    RewardMLP().load_state_dict(model.state_dict())  # the defaults are the shipped config's
    with pytest.raises((ValueError, RuntimeError), match="127"):
        model(torch.randn(8, 127))


def test_reward_model_training_step() -> None:
    torch.manual_seed(0)
    model = RewardMLP(input_dim=128, hidden_dim=64, num_layers=2)
    features = torch.randn(8, 128)
    target = torch.tanh(features[:, 0] - features[:, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = mse_loss(model(features), target).loss
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(loss.value())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.1 * losses[0]
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
