"""Settings of training on rollouts: PPO's optimizer has the published hyperparameters."""

from __future__ import annotations

import torch
from torch import nn

from accord.config.common import Optimizer
from accord.config.on_policy import PPOOptimizer
from accord.training.updater import Updater


def test_ppo_has_the_published_optimizer_settings() -> None:
    options = PPOOptimizer()
    assert (options.adam_eps, options.max_grad_norm, options.vf_coef) == (1e-5, 0.5, 0.5)
    assert Optimizer().adam_eps == 1e-8
    weight = nn.Parameter(torch.zeros(2, 2))
    updater = Updater([([weight], options.learning_rate)], options, 1)
    assert {group["eps"] for group in updater.optimizer.param_groups} == {1e-5}
