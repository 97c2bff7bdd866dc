"""What an environment may return, and the sentence where it does not."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from accord.errors import UserError
from accord.rollout.env.checked import CheckedEnvironment, all_finite
from accord.rollout.env.episodes import EpisodeVectors

SEEN = np.zeros(2)


class Task:
    """Ends at step 3; ``first`` and ``then`` replace what reset and step return."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, first: Callable[[], Any] | None = None, then: Callable[[], Any] | None = None) -> None:
        self.first, self.then, self.steps = first, then, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return self.first() if self.first else (SEEN, {})

    def step(self, action: int) -> Any:
        self.steps += 1
        return self.then() if self.then else (SEEN, 1.0, self.steps == 3, False, {})

    def close(self) -> None:
        raise OSError("no display")


class WithoutOptions(Task):
    def reset(self, *, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset()


class WithoutSeed(Task):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


def divide() -> Any:
    return 1 / 0


def leave() -> Any:
    sys.exit(3)


# ------------------------------------------------------------------ what is accepted
@pytest.mark.parametrize(
    "reward", [1.5, np.float32(1.5), np.array([1.5]), np.array(1.5), torch.tensor([1.5])], ids=repr
)
def test_a_reward_is_any_single_number(reward: Any) -> None:
    _, found, _, _, _ = CheckedEnvironment(Task(then=lambda: (SEEN, reward, False, False, {})), "a task").step(0)
    assert (type(found), found) == (float, 1.5)
    for whole in (2, True, np.int64(3), np.bool_(True)):
        task = Task(then=lambda whole=whole: (SEEN, whole, False, False, {}))  # type: ignore[misc]
        assert CheckedEnvironment(task, "a task").step(0)[1] == int(whole)


@pytest.mark.parametrize("flag", [True, np.bool_(True), 1, np.array([True]), np.array(1)], ids=repr)
def test_an_end_is_anything_that_is_true_or_false(flag: Any) -> None:
    environment = CheckedEnvironment(Task(then=lambda: (SEEN, 0.0, flag, not flag, {})), "a task")
    assert tuple(map(bool, environment.step(0)[2:4])) == (True, False)


def test_reset_needs_no_options_and_observations_are_float32() -> None:
    environment = CheckedEnvironment(WithoutOptions(first=lambda: ([1, 2], {})), "a task")
    seen, info = environment.reset(seed=3, options={"episode": 4})
    assert (seen.dtype, seen.tolist(), info) == (np.float32, [1, 2], {})


@pytest.mark.filterwarnings("error")
def test_a_vector_is_finite_where_its_square_is_not() -> None:
    large = np.array([3e38, -1.0], dtype=np.float32)
    assert all_finite(large)
    for wrong in (math.nan, math.inf, -math.inf):
        assert not all_finite(np.array([1.0, wrong], dtype=np.float32))


def test_an_environment_that_cannot_be_closed_costs_nothing() -> None:
    CheckedEnvironment(Task(), "a task").close()


# ------------------------------------------------------------------ what is refused, and where
RESETS: list[tuple[Any, str]] = [
    (lambda: SEEN, r"reset\(\) returned an array of shape \(2,\); return observation, info \(a dict\)"),
    (lambda: (SEEN, None), r"reset\(\) returned 2 values; return observation, info"),
    (lambda: None, r"reset\(\) returned None; return observation, info"),
    (lambda: (np.ones(3), {}), r"reset\(\) gave an observation of shape \(3,\), expected \(2,\)"),
    (lambda: (np.array([0, math.nan]), {}), r"reset\(\) gave an observation whose number 1 is nan"),
    (divide, r"reset\(\) raised ZeroDivisionError: division by zero at test_checked.py line \d+"),
    (leave, r"reset\(\) raised SystemExit: 3 at test_checked.py line \d+"),
]
STEPS: list[tuple[Any, str]] = [
    (
        lambda: (SEEN, 1.0, False, {}),
        r"step\(\) returned 4 values; return observation, reward, terminated, truncated, info",
    ),
    (lambda: None, r"step\(\) returned None; return observation, reward"),
    (lambda: (SEEN, math.nan, False, False, {}), r"step\(\) gave the reward nan, expected a finite number"),
    (lambda: (SEEN, np.float32(-np.inf), False, False, {}), r"step\(\) gave the reward -inf, expected a finite number"),
    (
        lambda: (SEEN, -1e300, False, False, {}),
        r"step\(\) gave the reward -1e\+300, expected a finite number of at most 1e\+18",
    ),
    (lambda: (SEEN, None, False, False, {}), r"step\(\) gave the reward None, expected a number"),
    (lambda: (SEEN, "1", False, False, {}), r"step\(\) gave the reward '1', expected a number"),
    (
        lambda: (SEEN, np.ones(2), False, False, {}),
        r"step\(\) gave the reward an array of shape \(2,\), expected a number",
    ),
    (lambda: (SEEN, 1.0, None, False, {}), r"step\(\) gave None as terminated, expected True or False"),
    (lambda: (SEEN, 1.0, False, "no", {}), r"step\(\) gave 'no' as truncated, expected True or False"),
    (lambda: (SEEN, 1.0, 2, False, {}), r"step\(\) gave 2 as terminated"),
    (
        lambda: (np.array([1e300, 0]), 1.0, False, False, {}),
        r"step\(\) gave an observation whose number 0 is inf in float32",
    ),
    (lambda: (0.0, 1.0, False, False, {}), r"step\(\) gave an observation of shape \(\), expected \(2,\)"),
    (divide, r"step\(\) raised ZeroDivisionError: division by zero at test_checked.py line \d+"),
]


@pytest.mark.parametrize(("first", "message"), RESETS)
def test_a_wrong_reset_is_named(first: Any, message: str) -> None:
    environment = CheckedEnvironment(Task(first=first), "a task", number=2)
    with pytest.raises(UserError, match=rf"^environment: 'a task' \(number 2, episode 7, seed 5, step 0\): {message}"):
        environment.reset(seed=5, options={"episode": 7})


@pytest.mark.parametrize(("then", "message"), STEPS)
def test_a_wrong_step_is_named(then: Any, message: str) -> None:
    task = Task()
    environment = CheckedEnvironment(task, "a task", number=2)
    environment.reset(seed=5, options={"episode": 7})
    environment.step(0)
    task.then = then
    with pytest.raises(UserError, match=rf"^environment: 'a task' \(number 2, episode 7, seed 5, step 2\): {message}"):
        environment.step(0)


def test_a_reset_without_seed_says_how_to_define_it() -> None:
    with pytest.raises(UserError, match=r"unexpected keyword argument 'seed'; define it as reset\(self, \*, seed=None"):
        CheckedEnvironment(WithoutSeed(), "a task").reset(seed=1)


def test_the_place_is_that_of_the_episode_that_failed() -> None:
    """Environment, episode, seed and step after several episodes, and after a resumed state."""
    tasks = [Task(), Task()]
    made = [CheckedEnvironment(task, "a task", i) for i, task in enumerate(tasks)]
    vectors = EpisodeVectors(made, made[0].spaces, lambda i, episode: 100 * i + episode)
    for _ in range(7):
        vectors.step(np.array([0, 1]))
    again = [CheckedEnvironment(task, "a task", i) for i, task in enumerate([Task(), Task()])]
    resumed = EpisodeVectors(again, again[0].spaces, vectors.seed_of)
    resumed.load_state_dict(vectors.state_dict())
    again[1].environment.then = tasks[1].then = lambda: (SEEN, math.nan, False, False, {})
    for found in (vectors, resumed):
        with pytest.raises(
            UserError, match=r"'a task' \(number 1, episode 2, seed 102, step 2\): step\(\) gave the reward nan"
        ):
            found.step(np.array([0, 0]))
