"""Every trainer learns a task that a working one learns in seconds and a broken one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accord.data.prompts import load_prompts
from accord.data.supervised import load_supervised
from accord.data.tokenizer import Tokenizer
from accord.models.open import open_backbone
from accord.rollout.generate import Decoding, generate

Lines = Callable[[str], list[dict[str, float]]]


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_sft_memorizes_eight_rows(stage: Any, world: Any, tokenizer: Tokenizer, tmp_path: Path, family: str) -> None:
    training = {"batch_size": 8, "num_epochs": 80, "learning_rate": 0.02, "schedule": "cosine", "warmup_steps": 5}
    values = {"model": {"base_model": getattr(world, family)}, "data": {"train": world.sft}, "training": training}
    assert stage("sft", values).done["metrics"]["nll"] < 0.1
    backbone = open_backbone(tmp_path / "out" / "sft" / "model")
    examples = load_supervised(world.sft, tokenizer, 64).examples
    asked = [e.tokens[: e.loss_mask.index(True)] for e in examples]
    decoding = Decoding(16, tokenizer.eos_id, tokenizer.pad_id, 0)
    said = generate(backbone, asked, decoding, [0] * len(asked))[0].reply_tokens()
    known = {
        tuple(p): {tuple(e.tokens[len(p) :]) for e, q in zip(examples, asked, strict=True) if p == q} for p in asked
    }
    right = [tuple(r) in known[tuple(p)] for p, r in zip(asked, said, strict=True)]
    assert sum(right) >= 7  # two prompts have two answers each


def test_dpo_makes_the_chosen_likelier(stage: Any, world: Any, lines: Lines) -> None:
    training = {"batch_size": 8, "num_epochs": 15, "learning_rate": 0.01, "beta": 0.3}
    data = {"train": world.preferences, "heldout_fraction": 0.0}
    stage("dpo", {"model": {"base_model": world.mamba, "max_length": 96}, "data": data, "training": training})
    first, last = lines("dpo")[0], lines("dpo")[-1]
    assert last["loss"] < 0.05 < 0.69 < first["loss"]
    assert last["accuracy"] == 1.0
    assert last["margin"] > 3
    assert last["chosen_logprob"] - last["rejected_logprob"] > first["chosen_logprob"] - first["rejected_logprob"] + 10


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_ppo_on_a_whole_model_finds_the_letter_that_pays(
    stage: Any, world: Any, rewards: str, tokenizer: Tokenizer, tmp_path: Path, lines: Lines, critic: str
) -> None:
    values = {
        "model": {"policy": "language", "base_model": world.mamba, "max_length": 64, "critic": critic},
        "training": {
            "iterations": 12, "replies": 32, "batch_size": 16, "num_epochs": 2, "learning_rate": 0.01, "gamma": 1.0,
        },
        "kl": {"beta": 0.0},
        "sampling": {"max_new_tokens": 8},
        "prompts": world.prompts,
        "reward": {"source": f"{rewards}:share_of_a", "scale": 5.0},
    }  # fmt: skip
    stage("ppo", values)
    scores = [row["rollout/score"] for row in lines("ppo") if "rollout/score" in row]
    assert scores[0] < 0.1
    assert scores[-1] > 0.4
    assert all(np.isfinite(list(row.values())).all() for row in lines("ppo"))
    prompts = load_prompts(world.prompts, tokenizer, 40).prompts
    backbone = open_backbone(tmp_path / "out" / "ppo" / "model")
    decoding = Decoding(8, tokenizer.eos_id, tokenizer.pad_id)
    said = generate(backbone, prompts, decoding, range(4 * len(prompts)), 4)[0].reply_tokens()
    text = "".join(tokenizer.decode(r) for r in said)
    assert text.count("a") > 0.4 * len(text)  # the written model does it too


def test_the_kl_holds_the_policy_back(stage: Any, world: Any, rewards: str, lines: Lines) -> None:
    ends = []
    for name, beta in (("free", 0.0), ("near_the_reference", 2.0)):
        values = {
            "model": {"policy": "language", "base_model": world.mamba, "max_length": 64},
            "training": {
                "iterations": 8, "replies": 32, "batch_size": 16, "num_epochs": 2, "learning_rate": 0.01, "gamma": 1.0,
            },
            "kl": {"beta": beta},
            "sampling": {"max_new_tokens": 8},
            "prompts": world.prompts,
            "reward": {"source": f"{rewards}:share_of_a", "scale": 5.0},
        }  # fmt: skip
        ends.append(stage("ppo", values, name).done["metrics"])
    assert ends[1]["kl"] < 0.3 * ends[0]["kl"]
    assert ends[1]["score"] < ends[0]["score"]


def test_ppo_on_heads_finds_the_letter_that_pays(stage: Any, world: Any, rewards: str, lines: Lines) -> None:
    values = {
        "model": {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "max_length": 64},
        "training": {
            "total_timesteps": 1152, "n_steps": 16, "n_envs": 8, "batch_size": 32, "learning_rate": 0.01, "gamma": 1.0,
        },
        "kl": {"beta": 0.0},
        "sampling": {"max_new_tokens": 4},
        "prompts": world.prompts,
        "reward": {"source": f"{rewards}:share_of_a", "scale": 5.0},
    }  # fmt: skip
    stage("ppo", values)
    returns = [row["rollout/episode_return"] / 5 for row in lines("ppo") if "rollout/episode_return" in row]
    assert returns[0] < 0.15
    assert returns[-1] > 0.5


@pytest.fixture
def identity() -> Iterator[str]:
    """A Gymnasium task: say which of four lamps is lit, ten times; every right answer pays 1."""
    import gymnasium

    class Lamps(gymnasium.Env[np.ndarray, int]):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (4,), np.float32)
        action_space = gymnasium.spaces.Discrete(4)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            self.count = 0
            return self._light(), {}

        def _light(self) -> np.ndarray:
            self.lit = int(self.np_random.integers(4))
            return np.eye(4, dtype=np.float32)[self.lit]

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            reward = float(action == self.lit)
            self.count += 1
            return self._light(), reward, self.count == 10, False, {}

    gymnasium.register("Lamps-v0", entry_point=lambda: Lamps(), disable_env_checker=True)
    yield "Lamps-v0"
    gymnasium.registry.pop("Lamps-v0")


def test_ppo_on_vectors_comes_near_the_best(stage: Any, identity: str, lines: Lines) -> None:
    training = {"total_timesteps": 2560, "n_steps": 32, "n_envs": 4, "batch_size": 32, "learning_rate": 0.003}
    values = {"model": {"policy": "control", "hidden_dim": 32}, "environment": identity, "training": training}
    stage("ppo", values)
    returns = [row["rollout/episode_return"] for row in lines("ppo") if "rollout/episode_return" in row]
    assert returns[0] < 5
    assert np.mean(returns[-5:]) > 9
