"""Environments side by side: ends of episodes, seeds, reference log-probs, and states that give the same future."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accord.rollout.env.episodes import EpisodeVectors
from accord.rollout.env.gym import make_environment
from accord.rollout.env.spaces import Spaces


class Counter:
    """Shows (episode's seed, steps); rewards the action; ends at 3 steps, and is truncated at 2 where the action was 9."""

    def __init__(self) -> None:
        self.seeds: list[int | None] = []
        self.steps = 0
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seeds.append(seed)
        self.steps = 0
        return np.array([seed, 0.0]), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        cut = self.steps == 2 and action == 9
        seen = np.array([self.seeds[-1], self.steps])
        return seen, float(action), self.steps == 3, cut, {"ref_logprob": -float(action)}

    def close(self) -> None:
        self.closed = True


def counters(n: int = 2, with_reference: bool = False) -> EpisodeVectors:
    made = [Counter() for _ in range(n)]
    return EpisodeVectors(made, Spaces(2, 10), lambda i, episode: 100 * i + episode, with_reference)


# ------------------------------------------------------------------------------------- ends of episodes
def test_each_is_reset_where_it_ends_and_shows_its_final_observation() -> None:
    vectors = counters()
    assert vectors.observations.tolist() == [[0, 0], [100, 0]]
    vectors.step(np.array([1, 2]))
    assert vectors.observations.tolist() == [[0, 1], [100, 1]]
    stepped = vectors.step(np.array([1, 9]))
    assert stepped.terminated.tolist() == [False, False]
    assert stepped.truncated.tolist() == [False, True]
    assert stepped.final.tolist() == [[0, 2], [100, 2]]  # the end of the old episode, not the start of the new
    assert vectors.observations.tolist() == [[0, 2], [101, 0]]
    stepped = vectors.step(np.array([5, 5]))
    assert stepped.final.tolist() == [[0, 3], [101, 1]]
    assert stepped.rewards.tolist() == [5, 5]
    assert stepped.terminated.tolist() == [True, False]
    assert not stepped.truncated.any()
    assert stepped.valid.all()
    assert not vectors.waiting.any()
    assert vectors.observations.tolist() == [[1, 0], [101, 1]]
    assert vectors.observations.dtype == stepped.final.dtype == np.float32
    assert [counter.seeds for counter in vectors.environments] == [[0, 1], [100, 101]]


def test_seeds_are_cut_to_what_gymnasium_takes() -> None:
    vectors = EpisodeVectors([Counter()], Spaces(2, 10), lambda i, episode: 2**40 + 7)
    assert vectors.environments[0].seeds == [7]


@pytest.mark.parametrize("with_reference", [False, True])
def test_reference_logprobs_are_given_where_they_are_promised(with_reference: bool) -> None:
    vectors = counters(with_reference=with_reference)
    stepped = vectors.step(np.array([3, 4]))
    if with_reference:
        assert stepped.ref_logprobs is not None
        assert stepped.ref_logprobs.dtype == np.float64
        assert stepped.ref_logprobs.tolist() == [-3, -4]
    else:
        assert stepped.ref_logprobs is None


def test_closing_closes_each() -> None:
    vectors = counters()
    vectors.close()
    assert all(counter.closed for counter in vectors.environments)


def test_actions_are_counted_from_the_tasks_start_or_clipped_to_its_bounds() -> None:
    actions = np.array([0, 2])
    assert Spaces(1, 3).to_task(actions) is actions
    assert Spaces(1, 3, start=-1).to_task(actions).tolist() == [-1, 1]
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 2.0])
    drawn = np.array([[-7.0, 1.5], [0.25, 9.0]])
    assert Spaces(1, 2, True, 0, low, high).to_task(drawn).tolist() == [[-1.0, 1.5], [0.25, 2.0]]
    assert drawn.tolist() == [[-7.0, 1.5], [0.25, 9.0]]


# ------------------------------------------------------------------------------------- the same future
def cartpoles(n: int = 2) -> EpisodeVectors:
    environments = [make_environment("CartPole-v1") for _ in range(n)]
    return EpisodeVectors(environments, Spaces(4, 2), lambda i, episode: 7 * i + episode)


@pytest.mark.parametrize("before", [0, 1, 40, 73])
def test_a_saved_state_resumes_bit_exactly(before: int, tmp_path: Path) -> None:
    actions = torch.randint(0, 2, (120, 2), generator=torch.Generator().manual_seed(1)).numpy()
    whole = cartpoles()
    for a in actions[:before]:
        whole.step(a)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)  # as a checkpoint does
    resumed = cartpoles()
    resumed.load_state_dict(state)
    assert str(resumed.state_dict()) == str(state) == str(whole.state_dict())
    for a in actions[before:]:
        np.testing.assert_array_equal(resumed.observations, whole.observations)
        ours, theirs = resumed.step(a), whole.step(a)
        for field in ("rewards", "terminated", "truncated", "valid", "final"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert max(whole.episodes) > 2, "no episode ended: this test would show little"


def test_a_state_is_a_copy_of_the_present_episodes_actions() -> None:
    vectors = counters(1)
    for action in (1, 2, 3, 4):  # the first episode ends with its third step
        vectors.step(np.array([action]))
    state = vectors.state_dict()
    vectors.step(np.array([5]))
    assert state["episodes"] == [1]
    assert state["starts"] == [0]
    assert state["actions"].tolist() == [[4]]
    assert vectors.state_dict()["actions"].tolist() == [[4], [5]]


def test_actions_of_past_episodes_are_forgotten() -> None:
    vectors = counters()
    for step in range(2500):
        vectors.step(np.array([step % 9, 0]))
    assert len(vectors.actions) <= 1010
    resumed = counters()
    resumed.load_state_dict(vectors.state_dict())
    np.testing.assert_array_equal(resumed.observations, vectors.observations)
    assert resumed.episodes == vectors.episodes == [833, 833]
