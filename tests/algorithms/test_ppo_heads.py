"""PPO's heads on a frozen language model: runs, what an episode is rewarded with, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accord.algorithms.ppo_heads import open_token_environments
from accord.config.load import build
from accord.config.ppo import PPO
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.heads import ActorCritic
from accord.models.open import open_backbone
from accord.models.reward import RewardMLP, RewardModel
from accord.rollout.env.tokens import TokenEnvironment
from accord.runtime.run import Run

NewRun = Callable[..., Run]


def heads(world: Any, rewards: str, **changes: Any) -> dict[str, Any]:
    training = {"total_timesteps": 64, "n_steps": 16, "n_envs": 2, "batch_size": 8, "num_epochs": 2}
    return {
        "model": {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "max_length": 64,
                  **changes.pop("model", {})},
        "training": {**training, **changes.pop("training", {})},
        "sampling": {"max_new_tokens": 5},
        "prompts": world.prompts,
        "reward": {"source": f"{rewards}:share_of_a", **changes.pop("reward", {})},
        **changes,
    }  # fmt: skip


def rollouts(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [r for r in rows if "rollout/episode_return" in r]


# ------------------------------------------------------------------------------------- runs
def test_a_run_starts_each_rollout_at_ratio_one(
    stage: Any, world: Any, rewards: str, lines: Any, tmp_path: Path
) -> None:
    outcome = stage("ppo", heads(world, rewards))
    rows = [r for r in lines("ppo") if "ratio" in r]
    firsts = [r for r in rows if (r["step"] - 1) % 8 == 0]
    assert [r["ratio"] for r in firsts] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert firsts[0]["approx_kl"] == pytest.approx(0, abs=1e-8)
    assert len(rows) == 16
    content = torch.load(tmp_path / "out" / "ppo" / "ppo_final.pt", weights_only=True)
    model = ActorCritic(content["obs_dim"], content["action_dim"], content["hidden_dim"])
    model.load_state_dict(content["model_state_dict"])
    assert outcome.done["metrics"]["episodes"] > 0
    first = rollouts(lines("ppo"))[0]
    assert abs(first["rollout/kl"]) > 1e-3  # an all but uniform policy against a language model
    assert first["rollout/episodes"] >= 6  # 32 steps of episodes of at most 5


def test_the_kl_coefficient_counts_replies_not_steps(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    """The horizon is in replies, and a rollout of heads has fewer replies than steps."""
    kl = {"beta": 0.1, "target": 0.01, "horizon": 100}
    stage("ppo", heads(world, rewards, kl=kl, training={"total_timesteps": 96}))
    rows = rollouts(lines("ppo"))
    beta, before = 0.1, 0.0
    for row in rows:
        assert row["rollout/beta"] == pytest.approx(beta, rel=1e-6)
        ended, before = row["rollout/episodes"] - before, row["rollout/episodes"]
        assert 0 < ended < 32
        beta *= 1 + min(max(row["rollout/kl"] / 0.01 - 1, -0.2), 0.2) * ended / 100
    assert len(rows) == 3


def test_an_mlp_reward_model_serves_as_reward(stage: Any, world: Any, rewards: str, tmp_path: Path, lines: Any) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "mlp"
    folder.mkdir()
    RewardModel(open_backbone(world.mamba), RewardMLP(32, 8), "mean").save(str(folder))
    from accord.data.tokenizer import small_tokenizer

    small_tokenizer().save(folder)
    stage("ppo", heads(world, rewards, reward={"source": str(folder)}, training={"total_timesteps": 32}))
    assert math.isfinite(rollouts(lines("ppo"))[0]["rollout/episode_return"])


# ------------------------------------------------------------------------------------- what is refused
def test_sizes_that_do_not_fit_are_named(stage: Any, world: Any, rewards: str) -> None:
    with pytest.raises(UserError, match=r"model\.obs_dim is 128, .* has 32; set model\.obs_dim=32"):
        stage("ppo", heads(world, rewards, model={"obs_dim": 128}))
    with pytest.raises(UserError, match=r"model\.action_dim is 51, .* has 50"):
        stage("ppo", heads(world, rewards, model={"action_dim": 51}))


def test_a_kl_in_the_loss_and_whitened_rewards_are_refused(stage: Any, world: Any, rewards: str) -> None:
    with pytest.raises(UserError, match=r"kl\.placement"):
        stage("ppo", heads(world, rewards, kl={"placement": "loss", "estimator": "k2"}))
    with pytest.raises(UserError, match=r"reward\.whiten"):
        stage("ppo", heads(world, rewards, reward={"whiten": True}))


# ------------------------------------------------------------------------------------- the environments
def opened(run: Run, world: Any, rewards: str, **changes: Any) -> Any:
    config = build(PPO, {**heads(world, rewards, **changes), "device": "cpu"}, {}, "the test")
    return open_token_environments(config, run)


def test_environments_have_the_models_sizes_and_its_logprobs(new_run: NewRun, world: Any, rewards: str) -> None:
    vectors = opened(new_run(), world, rewards, training={"n_envs": 3})
    assert (vectors.spaces.obs_dim, vectors.spaces.action_dim, vectors.spaces.continuous) == (32, 50, False)
    assert vectors.observations.shape == (3, 32)
    stepped = vectors.step(np.array([7, 8, 9]))
    assert stepped.ref_logprobs is not None
    assert stepped.ref_logprobs.shape == (3,)
    assert (stepped.ref_logprobs < 0).all()


def test_each_environment_and_episode_has_a_seed_of_its_own(new_run: NewRun, world: Any, rewards: str) -> None:
    run = new_run()
    vectors = opened(run, world, rewards)
    seeds = {vectors.seed_of(i, episode) for i in range(2) for episode in range(3)}
    assert seeds == {run.derive("environment", i, episode) for i in range(2) for episode in range(3)}
    assert len(seeds) == 6


@pytest.fixture
def rewarded(new_run: NewRun, world: Any) -> Callable[..., float]:
    """The reward of an episode: the sum over its steps, of which only the last may differ from 0."""

    def reward_of(source: str, reply: list[int], **reward: Any) -> float:
        values = {
            "model": {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "max_length": 64},
            "sampling": {"max_new_tokens": 4},
            "prompts": world.prompts,
            "reward": {"source": source, **reward},
            "device": "cpu",
        }
        vectors = open_token_environments(build(PPO, values, {}, "the test"), new_run())
        environment = vectors.environments[0]
        assert isinstance(environment, TokenEnvironment)
        environment.reset(seed=0)
        steps = [environment.step(token) for token in reply]
        assert [step[1] for step in steps[:-1]] == [0.0] * (len(reply) - 1)
        assert [step[2] for step in steps] == [False] * (len(reply) - 1) + [True]
        return steps[-1][1]

    return reward_of


def test_a_reply_without_its_end_gets_the_penalty_alone(
    rewarded: Callable[..., float], rewards: str, tokenizer: Tokenizer
) -> None:
    """The penalty takes the place of the score; it is not added to it."""
    brevity = f"{rewards}:brevity"  # minus the letters
    cut, ended = tokenizer.encode("abcd"), [*tokenizer.encode("abc"), tokenizer.eos_id]
    assert rewarded(brevity, ended) == -3.0
    assert rewarded(brevity, cut) == -4.0
    for penalty in (-1.0, 0.0, -7.0):
        shaping = {"missing_eos_penalty": penalty, "scale": 10.0, "clip": 5.0}
        assert rewarded(brevity, cut, **shaping) == penalty  # untouched by scale and clip
        assert rewarded(brevity, ended, **shaping) == -5.0


@pytest.mark.parametrize(("scale", "clip", "expected"), [(0.5, 0.0, -1.5), (0.5, 1.0, -1.0), (-2.0, 5.0, 5.0)])
def test_a_score_is_scaled_before_it_is_clipped(
    rewarded: Callable[..., float], rewards: str, tokenizer: Tokenizer, scale: float, clip: float, expected: float
) -> None:
    ended = [*tokenizer.encode("abc"), tokenizer.eos_id]
    assert rewarded(f"{rewards}:brevity", ended, scale=scale, clip=clip) == expected
