"""PPO in bfloat16: the sampler's log-probs differ from the trainer's, so the trainer's own are taken (traps 22, 58)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accord.data.tokenizer import Tokenizer
from accord.models.open import open_backbone


def loud(folder: str, by: float, target: Path, tokenizer: Tokenizer) -> str:
    """A copy with weights so large that rounding to bfloat16 is felt."""
    backbone = open_backbone(folder)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if weight.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                weight.mul_(by)
    target.mkdir()
    backbone.save(str(target))
    tokenizer.save(target)
    return str(target)


def values(model: str, prompts: str, rewards: str, precision: str) -> dict[str, Any]:
    return {
        "model": {"policy": "language", "base_model": model, "max_length": 64},
        "training": {"replies": 8, "batch_size": 8, "num_epochs": 1, "iterations": 2, "learning_rate": 1e-3},
        "sampling": {"max_new_tokens": 12, "temperature": 0.7},
        "prompts": prompts,
        "reward": {"source": f"{rewards}:brevity", "scale": 0.1},
        "precision": precision,
    }


@pytest.mark.parametrize(("family", "by"), [("mamba", 3), ("transformer", 8)])
def test_each_rollout_starts_at_ratio_one_and_logs_the_mismatch(
    stage: Any, world: Any, rewards: str, lines: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, by: float
) -> None:
    model = loud(getattr(world, family), by, tmp_path / "loud", tokenizer)
    stage("ppo", values(model, world.prompts, rewards, "bfloat16"))
    rollouts = [row for row in lines("ppo") if "rollout/mismatch_max" in row]
    assert len(rollouts) == 2
    for row in rollouts:
        assert 1e-4 < row["rollout/mismatch_mean"] < row["rollout/mismatch_max"]
    steps = [row for row in lines("ppo") if "ratio" in row]  # one a rollout
    assert [row["ratio"] for row in steps] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert max(row["approx_kl"] for row in steps) < 1e-9


def test_in_float32_the_log_probs_of_sampling_are_kept(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    stage("ppo", values(world.transformer, world.prompts, rewards, "float32"))
    assert not any("rollout/mismatch_max" in row for row in lines("ppo"))
