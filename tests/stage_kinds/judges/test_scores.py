"""Judges with scores: Bradley-Terry noise, ties, reward models."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from accord.data.samples import Candidate, Sample
from accord.errors import UserError
from accord.stage_kinds.judges.matching import Matching
from accord.stage_kinds.judges.scores import ScoreJudge, prefer, reward_scores


@pytest.mark.parametrize("noise", [0.4, 2.0])
def test_the_judge_is_bradley_terry(noise: float) -> None:
    rng = random.Random(0)
    for gap in (0.0, 0.3, 1.0, -1.0):
        share = sum(prefer(5.0 + gap, 5.0, noise, rng) for _ in range(20_000)) / 20_000
        expected = 1 / (1 + math.exp(-gap / noise))
        assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))


def test_without_noise_the_better_always_wins_and_far_gaps_do_not_overflow() -> None:
    rng = random.Random(0)
    assert prefer(1.0, 0.999, 0.0, rng)
    assert not prefer(0.999, 1.0, 0.0, rng)
    assert prefer(1e9, 0.0, 1e-3, rng)
    assert not prefer(0.0, 1e9, 1e-3, rng)


def choices(
    texts: list[str], scores: list[float], noise: float = 0.0, min_gap: float = 0.0, seed: int = 0
) -> list[str]:
    """For each pair the preferred text, or what else was said."""
    judge = ScoreJudge("f", lambda _, given: scores, Matching("all", 1), noise, min_gap, seed)
    sample = Sample("p", tuple(map(Candidate, texts)))
    found = judge.judge([sample])
    assert all(j.details["scores"] == [scores[j.pair.a], scores[j.pair.b]] for j in found)
    return [texts[getattr(j.pair, j.choice)] if j.choice in ("a", "b") else j.choice for j in found]


def test_equal_and_close_scores_are_ties_and_equal_texts_no_question() -> None:
    assert choices(["x", "y"], [1.0, 1.0]) == ["tie"]
    assert choices(["x", "y"], [1.0, 1.4], min_gap=0.5) == ["tie"]
    assert choices(["x", "y"], [1.0, 1.5], min_gap=0.5) == ["y"]
    assert choices(["x", "x"], [1.0, 2.0]) == []
    assert sorted(choices(["x", "y", "z"], [1.0, 2.0, 3.0])) == ["y", "z", "z"]


def test_noise_turns_some_preferences_around() -> None:
    assert {choices(["x", "y"], [1.0, 0.5], noise=1.0, seed=seed)[0] for seed in range(50)} == {"x", "y"}


def test_a_reward_model_scores_as_it_does_in_training(world: Any) -> None:
    from accord.api import load

    samples = [Sample("what is red?", (Candidate("fire is."), Candidate("no."))), Sample("hi", (Candidate("hello!"),))]
    scores = reward_scores(world.reward, samples, torch.device("cpu"))
    prompts, texts = ["what is red?", "what is red?", "hi"], ["fire is.", "no.", "hello!"]
    assert scores(prompts, texts) == pytest.approx(load(world.reward).scores(prompts, texts), abs=1e-6)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=str(world.mamba)):
        reward_scores(world.mamba, samples, torch.device("cpu"))
