"""What an episode of PPO on heads is paid: the score, scaled and clipped, or the penalty in its place (trap 24)."""

from __future__ import annotations

from typing import Any

import pytest

from accord.algorithms.ppo_heads import heads_environments
from accord.config.load import build
from accord.config.ppo import PPO
from accord.data.tokenizer import Tokenizer
from accord.rollout.env.tokens import TokenEnvironment


def paid(world: Any, source: str, reply: list[int], **reward: Any) -> float:
    """The sum of an episode's rewards, of which only the last may differ from 0."""
    values = {
        "model": {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "max_length": 64},
        "sampling": {"max_new_tokens": 4},
        "prompts": world.prompts,
        "reward": {"source": source, **reward},
        "device": "cpu",
    }
    environments, _, _ = heads_environments(build(PPO, values, {}, "the test"))
    environment = environments[0]
    assert isinstance(environment, TokenEnvironment)
    environment.reset(seed=0)
    steps = [environment.step(token) for token in reply]
    assert [step[1] for step in steps[:-1]] == [0.0] * (len(reply) - 1)
    assert [step[2] for step in steps] == [False] * (len(reply) - 1) + [True]
    return steps[-1][1]


def test_a_reply_without_its_end_is_paid_the_penalty_alone(world: Any, rewards: str, tokenizer: Tokenizer) -> None:
    brevity = f"{rewards}:brevity"  # minus the letters
    cut, ended = tokenizer.encode("abcd"), [*tokenizer.encode("abc"), tokenizer.eos_id]
    assert paid(world, brevity, ended) == -3.0
    assert paid(world, brevity, cut) == -4.0
    for penalty in (-1.0, 0.0, -7.0):
        shaping = {"missing_eos_penalty": penalty, "scale": 10.0, "clip": 5.0}
        assert paid(world, brevity, cut, **shaping) == penalty  # untouched by scale and clip
        assert paid(world, brevity, ended, **shaping) == -5.0


@pytest.mark.parametrize(("scale", "clip", "expected"), [(0.5, 0.0, -1.5), (0.5, 1.0, -1.0), (-2.0, 5.0, 5.0)])
def test_it_is_scaled_before_it_is_clipped(
    world: Any, rewards: str, tokenizer: Tokenizer, scale: float, clip: float, expected: float
) -> None:
    ended = [*tokenizer.encode("abc"), tokenizer.eos_id]
    assert paid(world, f"{rewards}:brevity", ended, scale=scale, clip=clip) == expected
