"""The stage ``ppo``: a whole language model, heads on a frozen one, or a Gymnasium task, as the config says."""

from __future__ import annotations

from accord.algorithms import ppo, ppo_control, ppo_heads
from accord.config.control import ControlPPOConfig
from accord.config.on_policy import HeadsPPOConfig, LanguagePPOConfig
from accord.runtime.run import Run


def run_ppo(config: LanguagePPOConfig | HeadsPPOConfig | ControlPPOConfig, run: Run) -> dict[str, float]:
    """Trains the policy; returns the metrics of the last rollout."""
    if isinstance(config, LanguagePPOConfig):
        return ppo.train(config, run)
    if isinstance(config, HeadsPPOConfig):
        return ppo_heads.train(config, run)
    return ppo_control.train(config, run)
