"""The three policies of the stage ppo, and which of them a config selects."""

from __future__ import annotations

from accord.config.control import ControlPPOConfig
from accord.config.on_policy import HeadsPPOConfig, LanguagePPOConfig
from accord.config.variants import Variants

PPOConfig = LanguagePPOConfig | HeadsPPOConfig | ControlPPOConfig

PPO: Variants[PPOConfig] = Variants(
    description="PPO on a whole language model, on heads over a frozen one, or on a Gymnasium task.",
    key="model.policy",
    classes={"language": LanguagePPOConfig, "heads": HeadsPPOConfig, "control": ControlPPOConfig},
    signs={"environment": "control", "model.obs_dim": "heads", "model.action_dim": "heads"},
    former={"vector": "control"},
)
"""The settings of the stage ppo; without ``model.policy`` and without any of the signs, those of a language model."""
