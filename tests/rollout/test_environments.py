"""Environments: replies token by token, and several side by side that can be had again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.rollout.env.gym import make_environment
from accord.rollout.env.tokens import Step, TokenEnvironment, Vectors
from accord.types import Packed

PROMPTS = [(5, 6, 7), (8,), (9, 10)]
EOS = 1


def tiny() -> Backbone:
    torch.manual_seed(0)
    return small_backbone("mamba", 32, 2, 20, EOS, 0)


@pytest.fixture
def scored() -> list[tuple[int, list[int], bool]]:
    return []


def environment(scored: list[tuple[int, list[int], bool]]) -> TokenEnvironment:
    def score(prompt: int, tokens: list[int], ended: bool) -> float:
        scored.append((prompt, list(tokens), ended))
        return 2.5

    return TokenEnvironment(tiny(), PROMPTS, score, EOS, 4)


@torch.no_grad()
def features(tokens: list[int]) -> torch.Tensor:
    """(L, D) of the whole text, read at once."""
    return tiny()(Packed.of([tokens]))


@pytest.mark.parametrize("actions", [[3, 4, EOS], [3, 4, 5, 6], [EOS]])
def test_a_reply_is_an_episode(actions: list[int], scored: list[tuple[int, list[int], bool]]) -> None:
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


def test_the_seed_decides_the_prompt_and_reset_forgets(scored: list[tuple[int, list[int], bool]]) -> None:
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


# ------------------------------------------------------------------------------------- side by side
class Counter:
    """Shows (episode's seed, steps); ends at 3 steps, is cut at 2 where the action was 9."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []
        self.steps = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seeds.append(seed)
        self.steps = 0
        return np.array([seed, 0.0]), {}

    def step(self, action: int) -> Step:
        self.steps += 1
        cut = self.steps == 2 and action == 9
        return np.array([self.seeds[-1], self.steps]), float(action), self.steps == 3, cut, {}


def test_each_is_reset_where_it_ends_and_shows_its_final_observation() -> None:
    counters = [Counter(), Counter()]
    vectors = Vectors(counters, lambda i, episode: 100 * i + episode)
    assert vectors.observe().tolist() == [[0, 0], [100, 0]]
    vectors.step(torch.tensor([1, 2]))
    assert vectors.observe().tolist() == [[0, 1], [100, 1]]
    first, second = vectors.step(torch.tensor([1, 9]))
    assert first[2:4] == (False, False)
    assert second[2:4] == (False, True)
    assert second[0].tolist() == [100, 2]  # the end of the old episode, not the start of the new
    assert vectors.observe().tolist() == [[0, 2], [101, 0]]
    first, _ = vectors.step(torch.tensor([5, 5]))
    assert first[0].tolist() == [0, 3]
    assert first[1:4] == (5.0, True, False)
    assert vectors.observe().tolist() == [[1, 0], [101, 1]]
    assert vectors.observe().dtype is torch.float32
    assert [c.seeds for c in counters] == [[0, 1], [100, 101]]


def cartpoles(n: int = 2) -> Vectors:
    return Vectors([make_environment("CartPole-v1") for _ in range(n)], lambda i, episode: 7 * i + episode)


@pytest.mark.parametrize("before", [0, 1, 40, 73])
def test_a_saved_state_gives_the_same_future_bit_for_bit(before: int) -> None:
    actions = torch.randint(0, 2, (120, 2), generator=torch.Generator().manual_seed(1))
    whole = cartpoles()
    for a in actions[:before]:
        whole.step(a)
    state = whole.state_dict()
    assert whole.state_dict() == state
    resumed = cartpoles()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for a in actions[before:]:
        assert torch.equal(resumed.observe(), whole.observe())
        for ours, theirs in zip(resumed.step(a), whole.step(a), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1:4] == theirs[1:4]
    assert max(whole.episodes) > 2, "no episode ended: this test would show little"
    assert min(len(a) for a in state["actions"]) == 0 or before > 0


def test_a_state_is_a_copy() -> None:
    vectors = cartpoles(1)
    vectors.step(torch.tensor([0]))
    state = vectors.state_dict()
    vectors.step(torch.tensor([1]))
    assert state["actions"] == [[0]]


def test_replies_can_be_had_again_too(scored: list[tuple[int, list[int], bool]]) -> None:
    def two() -> Vectors:
        return Vectors([environment(scored), environment(scored)], lambda i, episode: 5 * i + episode)

    whole = two()
    for a in ([3, 4], [EOS, 5], [7, 8]):
        whole.step(torch.tensor(a))
    resumed = two()
    resumed.load_state_dict(whole.state_dict())
    for a in ([6, 6], [3, 9], [EOS, 4]):
        assert torch.equal(resumed.observe(), whole.observe())
        infos = [[s[4] for s in v.step(torch.tensor(a))] for v in (resumed, whole)]
        assert infos[0] == infos[1]
