"""PPO on the policy that ``model.policy`` names."""

from __future__ import annotations

from accord.algorithms import ppo, ppo_control, ppo_heads
from accord.config.settings import PPOConfig
from accord.runtime.run import Run


def train(config: PPOConfig, run: Run) -> dict[str, float]:
    """Trains a language model, heads on a frozen one, or a policy for a Gymnasium task."""
    stories = {"language": ppo.train, "heads": ppo_heads.train, "vector": ppo_control.train}
    return stories[config.model.policy](config, run)
