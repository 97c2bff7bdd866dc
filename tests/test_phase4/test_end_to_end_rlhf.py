"""The specification's commands write its files: each stage runs once, on the shipped configs made small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.cli import main
from src.rl.policy import ActorCritic

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SFT_EXTRA = ["model.n_layers=1"]  # and the base that is made for it, or it would train the usual one, for a minute
REWARD_EXTRA = ["data.limit=40"]
PPO_EXTRA = ["training.total_timesteps=96"]


@dataclass(frozen=True)
class Ran:
    """A stage that has run: what it returned and where it wrote."""

    code: int
    checkpoints: Path
    log: Path

    def state(self, name: str) -> dict[str, Any]:
        """The checkpoint's model_state_dict, opened as safely as the specification's ``torch.load`` opens it."""
        state: dict[str, Any] = torch.load(self.checkpoints / name, weights_only=True)["model_state_dict"]
        assert state
        assert all(torch.isfinite(x).all() for x in state.values() if isinstance(x, torch.Tensor))
        return state


def run(root: Path, stage: str, config: str, extra: list[str]) -> Ran:
    checkpoints, logs = root / "checkpoints" / "rlhf", root / "logs" / "rlhf"
    code = main([stage, "--config", str(CONFIGS / config), f"out={checkpoints}", f"logs={logs}", *extra])
    return Ran(code, checkpoints / stage, logs / stage / f"{stage}.log")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world and a base of one layer, where ``base_model: mamba`` finds it."""
    root = tmp_path_factory.mktemp("rlhf")
    where = [f"out={root / 'checkpoints' / 'rlhf'}", f"logs={root / 'logs' / 'rlhf'}"]
    rows = ["base_rows=200", "sft_rows=80", "preference_rows=60", "heldout_base_rows=16", "heldout_sft_rows=16"]
    assert main(["demo", *where, *rows]) == 0
    assert main(["base", *where, "model.n_layers=1", "data.limit=64"]) == 0
    return root


@pytest.fixture(scope="module")
def sft(root: Path) -> Ran:
    return run(root, "sft", "rlhf_sft.yaml", SFT_EXTRA)


@pytest.fixture(scope="module")
def reward(root: Path, sft: Ran) -> Ran:
    return run(root, "reward", "reward_model.yaml", REWARD_EXTRA)


@pytest.fixture(scope="module")
def ppo(root: Path, sft: Ran, reward: Ran) -> Ran:
    return run(root, "ppo", "ppo_train.yaml", PPO_EXTRA)


def test_sft_checkpoint_creation(sft: Ran) -> None:
    assert sft.code == 0
    first, final = sft.state("sft_epoch_0.pt"), sft.state("sft_final.pt")
    assert first.keys() == final.keys()
    assert sft.log.read_text().strip()


def test_reward_model_checkpoint(reward: Ran) -> None:
    from accord.models.reward import RewardMLP

    assert reward.code == 0
    model = RewardMLP(input_dim=128, hidden_dim=64, num_layers=2)
    model.load_state_dict(reward.state("reward_model_final.pt"))
    assert torch.isfinite(model(torch.randn(4, 128))).all()
    assert reward.log.read_text().strip()


def test_ppo_checkpoint(ppo: Ran) -> None:
    assert ppo.code == 0
    model = ActorCritic(obs_dim=128, action_dim=50)
    model.load_state_dict(ppo.state("ppo_final.pt"), strict=True)
    model.eval()
    assert all((x != 0).any() for name, x in model.state_dict().items() if name.endswith("bias"))  # 0 before training
    obs = torch.randn(3, 128)
    action, log_prob, value = model.get_action_and_value(obs)
    log_probs, values, entropy = model.evaluate(obs, action)
    for out in (action, log_prob, value, log_probs, values, entropy):
        assert out.shape == (3,)
        assert torch.isfinite(out.float()).all()
    assert ppo.log.read_text().strip()
