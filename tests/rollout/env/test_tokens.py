"""Replies token by token: an episode is a reply, and environments side by side resume as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.rollout.env.episodes import EpisodeVectors
from accord.rollout.env.spaces import Spaces
from accord.rollout.env.tokens import TokenEnvironment
from accord.types import Packed

PROMPTS = [(5, 6, 7), (8,), (9, 10)]
EOS = 1
Scored = list[tuple[int, list[int], bool]]


def tiny() -> Backbone:
    torch.manual_seed(0)
    return small_backbone("mamba", 32, 2, 20, EOS, 0)


@pytest.fixture
def scored() -> Scored:
    return []


def environment(scored: Scored) -> TokenEnvironment:
    def score(prompt: int, tokens: list[int], ended: bool) -> float:
        scored.append((prompt, list(tokens), ended))
        return 2.5

    return TokenEnvironment(tiny(), PROMPTS, score, EOS, 4)


@torch.no_grad()
def features(tokens: list[int]) -> torch.Tensor:
    """(L, D) of the whole text, read at once."""
    hidden: torch.Tensor = tiny()(Packed.of([tokens]))
    return hidden


@pytest.mark.parametrize("actions", [[3, 4, EOS], [3, 4, 5, 6], [EOS]])
def test_a_reply_is_an_episode(actions: list[int], scored: Scored) -> None:
    env = environment(scored)
    observation, _ = env.reset(seed=11)
    prompt = list(PROMPTS[env.prompt])
    hidden = features(prompt + actions)
    logprobs = tiny().logits(hidden).log_softmax(-1).detach()
    np.testing.assert_allclose(observation, hidden[len(prompt) - 1], atol=1e-5)
    for t, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(action)
        place = len(prompt) - 1 + t
        assert info["ref_logprob"] == pytest.approx(float(logprobs[place, action]), abs=1e-5)
        last = t == len(actions) - 1
        assert (reward, terminated, truncated) == ((2.5, True, False) if last else (0.0, False, False))
        if not last:
            np.testing.assert_allclose(observation, hidden[place + 1], atol=1e-5)
            assert scored == []
    assert scored == [(env.prompt, actions, actions[-1] == EOS)]


def test_the_seed_decides_the_prompt_and_reset_forgets(scored: Scored) -> None:
    env = environment(scored)
    drawn = []
    for seed in range(30):
        first, _ = env.reset(seed=seed)
        drawn.append(env.prompt)
        env.step(3)
        again, _ = env.reset(seed=seed)
        assert env.prompt == drawn[-1]
        np.testing.assert_array_equal(first, again)
        assert env.tokens == []
    assert set(drawn) == {0, 1, 2}


def test_replies_side_by_side_resume_as_they_were(scored: Scored) -> None:
    def two() -> EpisodeVectors:
        environments = [environment(scored), environment(scored)]
        return EpisodeVectors(environments, Spaces(32, 20), lambda i, episode: 5 * i + episode, with_reference=True)

    whole = two()
    for actions in ([3, 4], [EOS, 5], [7, 8]):
        whole.step(np.array(actions))
    resumed = two()
    resumed.load_state_dict(whole.state_dict())
    for actions in ([6, 6], [3, 9], [EOS, 4]):
        np.testing.assert_array_equal(resumed.observations, whole.observations)
        ours, theirs = resumed.step(np.array(actions)), whole.step(np.array(actions))
        assert ours.ref_logprobs is not None
        np.testing.assert_array_equal(ours.ref_logprobs, theirs.ref_logprobs)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
    assert whole.episodes[0] > 1
