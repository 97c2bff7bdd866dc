"""Adam's ε and the other numbers of PPO's optimiser: what is set is what steps, and what PPO sets (trap 42)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accord.config.common import Optimizer
from accord.config.on_policy import PPOOptimizer
from accord.functional.masked import mean_of
from accord.training.updater import Updater
from accord.types import LossOutput


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-3])
def test_the_first_step_by_hand(eps: float) -> None:
    """Bias-corrected moments of one gradient g are g and g², so the step is rate · g / (|g| + ε)."""
    weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    updater = Updater([([weight], 0.1)], Optimizer(adam_eps=eps), 1)
    updater.step([1e-5], lambda slope: LossOutput(mean_of(slope * weight), {}))
    assert float(weight.detach()) == pytest.approx(-0.1 * 1e-5 / (1e-5 + eps), rel=1e-5)


def test_ppo_takes_those_of_the_paper() -> None:
    options = PPOOptimizer()
    assert (options.adam_eps, options.max_grad_norm, options.vf_coef) == (1e-5, 0.5, 0.5)
    assert Optimizer().adam_eps == 1e-8
    weight = nn.Parameter(torch.zeros(2, 2))
    updater = Updater([([weight], options.learning_rate)], options, 1)
    assert {group["eps"] for group in updater.optimizer.param_groups} == {1e-5}
