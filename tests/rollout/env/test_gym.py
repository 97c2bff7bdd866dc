"""Gymnasium tasks side by side: what is opened, ends of episodes, and states that give the same future."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from accord.errors import UserError
from accord.rollout.env.episodes import EpisodeVectors, Vectors
from accord.rollout.env.gym import ArrayVectors, make_environment, open_vectors

gymnasium.register(
    "ShortCartPole-v0",
    entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
    vector_entry_point="gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv",
    max_episode_steps=12,
)
gymnasium.register(
    "ShortCartPoleOneByOne-v0",
    entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
    max_episode_steps=12,
)

OWN = '''
import gymnasium
import numpy as np

class Counter(gymnasium.Env):
    """Shows (seed, steps, last action); ends at 3 steps, and is truncated at 2 where the action was 1."""

    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        return np.array([seed, 0.0, 0.0]), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        cut = self.steps == 2 and action == 1
        return np.array([self.seed, self.steps, action]), float(action), self.steps == 3, cut, {}

class Reals(Counter):
    action_space = gymnasium.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32))

    def step(self, action):
        assert self.action_space.contains(action)
        return np.array([self.seed, *action]), 0.0, False, False, {}

class Whole(Counter):
    action_space = gymnasium.spaces.Box(0, 9, (2,), np.int64)

class Demanding(Counter):
    def __init__(self, needed):
        self.needed = needed

class Headless(Counter):
    def __init__(self):
        raise RuntimeError("no display")

class NoTask:
    pass

broken = 3
'''


def seed_of(i: int, episode: int) -> int:
    return 100 * i + episode


@pytest.fixture(scope="module", autouse=True)
def _own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "tasks_of_the_tests.py").write_text(OWN, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


# ------------------------------------------------------------------------------------- what is opened
@pytest.mark.parametrize(
    ("name", "kind", "obs_dim", "action_dim", "continuous"),
    [
        ("CartPole-v1", ArrayVectors, 4, 2, False),
        ("Acrobot-v1", EpisodeVectors, 6, 3, False),
        ("Pendulum-v1", EpisodeVectors, 3, 1, True),
        ("tasks_of_the_tests:Counter", EpisodeVectors, 3, 3, False),
        ("tasks_of_the_tests:Reals", EpisodeVectors, 3, 2, True),
    ],
)
def test_a_task_opens_with_its_spaces(name: str, kind: type, obs_dim: int, action_dim: int, continuous: bool) -> None:
    vectors = open_vectors(name, 3, seed_of)
    assert type(vectors) is kind
    found = vectors.spaces
    assert (found.obs_dim, found.action_dim, found.continuous) == (obs_dim, action_dim, continuous)
    assert vectors.observations.shape == (3, obs_dim)
    assert vectors.observations.dtype == np.float32
    assert make_environment(name).reset(seed=0)[0].shape == (obs_dim,)
    vectors.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchTask-v1", "environment: 'NoSuchTask-v1' cannot be made"),
        ("CartPol-v1", "'CartPol-v1' cannot be made .*Did you mean: `CartPole`"),
        ("CartPole-v7", "'CartPole-v7' cannot be made .*It provides versioned environments"),
        ("CartPole", "'CartPole' cannot be made .*; did you mean 'CartPole-v1'?"),
        ("LunarLander-v2", "deprecated. Please use `LunarLander-v3` instead"),
        ("", "environment: '' cannot be made"),
        (
            "tasks_of_the_tests:Whole",
            "needed is a Discrete, MultiDiscrete or MultiBinary space, or a Box of real numbers",
        ),
        ("tasks_of_the_tests:Demanding", r"cannot be made \(.*'needed'\); give its arguments in environment_args\.$"),
        ("tasks_of_the_tests:Headless", r"made \(RuntimeError: no display at tasks_of_the_tests.py line \d+\)\.$"),
        ("tasks_of_the_tests:NoTask", "is no subclass of gymnasium.Env"),
        ("tasks_of_the_tests:broken", "is not module:Class"),
        ("tasks_of_the_tests:Absent", "environment: .* cannot be imported"),
        ("no_such_module_here:Task", "environment: .* cannot be imported"),
        ("no_such_module_here:Task-v0", "cannot be made"),
    ],
)
def test_what_cannot_be_opened_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_vectors(name, 2, seed_of)


def test_arguments_are_given_to_the_task() -> None:
    heavy = make_environment("Pendulum-v1", {"g": 5.0, "max_episode_steps": 3})
    assert heavy.environment.unwrapped.g == 5.0
    heavy.reset(seed=0)
    assert [heavy.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]
    assert make_environment("tasks_of_the_tests:Demanding", {"needed": 3}).environment.needed == 3
    vectors = open_vectors("CartPole-v1", 2, seed_of, {"max_episode_steps": 3})
    assert isinstance(vectors, EpisodeVectors)  # its own vectorized implementation may not know the argument
    for _ in range(2):
        assert not vectors.step(np.array([0, 1])).truncated.any()
    assert vectors.step(np.array([0, 1])).truncated.all()
    with pytest.raises(UserError, match=r"unexpected keyword argument 'weight'.*; correct environment_args"):
        make_environment("CartPole-v1", {"weight": 1})


@pytest.mark.parametrize("name", ["FrozenLake-v1", "Taxi-v3", "Blackjack-v1"])
def test_a_task_of_discrete_observations_shows_vectors(name: str) -> None:
    name = next(key for key in gymnasium.registry if key.startswith(name[:-1]))  # Taxi's version differs
    vectors = open_vectors(name, 2, seed_of)
    for _ in range(3):
        vectors.step(np.array([0, 1]))
        assert vectors.observations.shape == (2, vectors.spaces.obs_dim)
        assert set(np.unique(vectors.observations)) == {0, 1}


def test_gymnasium_is_named_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"needs Gymnasium .*pip install -e '\S+\[control\]'"):
        open_vectors("CartPole-v1", 1, seed_of)


# ------------------------------------------------------------------------------------- ends of episodes
def test_each_is_reset_with_its_episodes_seed_and_shows_where_it_ended() -> None:
    vectors = open_vectors("tasks_of_the_tests:Counter", 2, seed_of)
    assert vectors.observations.tolist() == [[0, 0, 0], [100, 0, 0]]
    vectors.step(np.array([1, 1]))  # counted from start: the task is given 0
    assert vectors.observations.tolist() == [[0, 1, 0], [100, 1, 0]]
    stepped = vectors.step(np.array([0, 2]))
    assert stepped.terminated.tolist() == [False, False]
    assert stepped.truncated.tolist() == [False, True]
    assert stepped.final.tolist() == [[0, 2, -1], [100, 2, 1]]
    assert stepped.rewards.tolist() == [-1, 1]
    assert vectors.observations.tolist() == [[0, 2, -1], [101, 0, 0]]
    stepped = vectors.step(np.array([1, 1]))
    assert stepped.terminated.tolist() == [True, False]
    assert stepped.final.tolist() == [[0, 3, 0], [101, 1, 0]]
    assert vectors.observations.tolist() == [[1, 0, 0], [101, 1, 0]]
    assert stepped.valid.all()
    assert not vectors.waiting.any()


def test_real_valued_actions_are_clipped_only_when_acting() -> None:
    vectors = open_vectors("tasks_of_the_tests:Reals", 2, seed_of)
    drawn = np.array([[-7.0, 1.5], [0.25, 9.0]], dtype=np.float32)
    stepped = vectors.step(drawn)
    assert stepped.final[:, 1:].tolist() == [[-1.0, 1.5], [0.25, 2.0]]
    assert drawn.tolist() == [[-7.0, 1.5], [0.25, 9.0]]


@pytest.mark.parametrize("name", ["ShortCartPole-v0", "ShortCartPoleOneByOne-v0"])
def test_every_valid_transition_is_one_of_the_task(name: str) -> None:
    """Autoreset at the next step shows a 'transition' from an episode's end to the next one's start.

    The oracle is one CartPole put into the observed state.
    """
    vectors = open_vectors(name, 4, seed_of)
    assert isinstance(vectors, ArrayVectors) is (name == "ShortCartPole-v0")
    task = gymnasium.make("CartPole-v1").unwrapped
    task.reset(seed=0)
    rng, lengths, cuts, waits, ends = np.random.default_rng(0), np.zeros(4), 0, 0, 0
    for _ in range(300):
        seen, actions = vectors.observations.copy(), rng.integers(0, 2, 4)
        stepped = vectors.step(actions)
        for i in range(4):
            if not stepped.valid[i]:
                waits += 1
                assert not stepped.terminated[i]
                assert not stepped.truncated[i]
                assert np.abs(vectors.observations[i]).max() <= 0.05  # an episode's first observation
                continue
            task.state, task.steps_beyond_terminated = tuple(seen[i].astype(float)), None
            final, reward, terminated, _, _ = task.step(int(actions[i]))
            np.testing.assert_allclose(stepped.final[i], final, atol=1e-5)
            assert (stepped.rewards[i], stepped.terminated[i]) == (reward, terminated)
            lengths[i] += 1
            assert stepped.truncated[i] == (lengths[i] == 12)
            cuts += int(stepped.truncated[i])
            if terminated or stepped.truncated[i]:
                ends, lengths[i] = ends + 1, 0
                if isinstance(vectors, EpisodeVectors):
                    assert np.abs(vectors.observations[i]).max() <= 0.05
            else:
                np.testing.assert_array_equal(vectors.observations[i], stepped.final[i])
    assert cuts > 10
    assert ends > cuts
    assert (waits > 10) is isinstance(vectors, ArrayVectors)


@pytest.mark.parametrize("field", ["state", "reward"])
def test_a_number_that_is_not_finite_is_named_in_a_vectorized_task(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, episode and step of CartPole's own implementation; after a resumed state too."""
    vectors = open_vectors("ShortCartPole-v0", 2, seed_of)
    while vectors.episodes[1] < 2 or vectors.waiting[1]:  # type: ignore[attr-defined]
        vectors.step(np.array([0, 1]))
    vectors.step(np.array([0, 1]))
    resumed = open_vectors("ShortCartPole-v0", 2, seed_of)
    resumed.load_state_dict(vectors.state_dict())
    for each in (vectors, resumed):
        inner = each.inner  # type: ignore[attr-defined]
        if field == "state":
            inner.state[:, 1] = np.nan
        else:
            step = inner.step
            monkeypatch.setattr(
                inner, "step", lambda a, step=step: (lambda s: (s[0], np.array([1, np.inf]), *s[2:]))(step(a))
            )
        name = "observation is" if field == "state" else "reward is inf"
        with pytest.raises(
            UserError, match=rf"'ShortCartPole-v0' \(number 1, episode 2, seed 0 of all, step 2\): the {name}"
        ):
            each.step(np.array([0, 0]))


class Within(VectorEnv):  # type: ignore[type-arg]
    """Two that count to 2 and reset within the step; ``log`` holds what cannot be saved, where asked."""

    def __init__(self, num_envs: int = 2, mode: Any = AutoresetMode.SAME_STEP, log: bool = False, **_: Any) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": mode}
        self.single_observation_space = spaces.Box(-9, 9, (1,))
        self.single_action_space = spaces.Discrete(2)
        if log:
            self.log: list[int] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = np.zeros(self.num_envs)
        return self.count[:, None].copy(), {}

    def step(self, actions: Any) -> Any:
        self.count = self.count + actions
        ended = self.count >= 2
        final = self.count[:, None].copy()
        self.count = np.where(ended, 0.0, self.count)
        info = {"final_obs": np.array([*final, None], dtype=object)[:-1], "_final_obs": ended}
        return self.count[:, None].copy(), np.ones(self.num_envs), ended, np.zeros_like(ended), info


def test_autoreset_within_the_step_gives_the_final_observation() -> None:
    vectors = ArrayVectors("Within", Within(), seed_of)
    vectors.step(np.array([1, 0]))
    stepped = vectors.step(np.array([1, 1]))
    assert stepped.terminated.tolist() == [True, False]
    assert stepped.final.tolist() == [[2], [1]]
    assert vectors.observations.tolist() == [[0], [1]]
    assert stepped.valid.all()
    assert not vectors.waiting.any()


@pytest.mark.parametrize(("log", "mode"), [(True, AutoresetMode.SAME_STEP), (False, AutoresetMode.DISABLED)])
def test_an_implementation_that_cannot_be_saved_is_not_taken(log: bool, mode: Any) -> None:
    gymnasium.register(
        "Unsaved-v0",
        entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        vector_entry_point=lambda num_envs, **_: Within(num_envs, mode, log),
    )
    try:
        assert isinstance(open_vectors("Unsaved-v0", 2, seed_of), EpisodeVectors)
    finally:
        del gymnasium.registry["Unsaved-v0"]


# ------------------------------------------------------------------------------------- the same future
def drawn(vectors: Vectors, steps: int) -> np.ndarray:
    rng, found = np.random.default_rng(1), vectors.spaces
    if found.continuous:
        return rng.normal(size=(steps, 3, found.action_dim)).astype(np.float32) * 2
    return rng.integers(0, found.action_dim, (steps, 3))


@pytest.mark.parametrize("before", [0, 1, 40, 215])
@pytest.mark.parametrize(
    "name", ["CartPole-v1", "ShortCartPole-v0", "ShortCartPoleOneByOne-v0", "Pendulum-v1", "LunarLander-v3"]
)
def test_a_saved_state_resumes_bit_exactly(name: str, before: int, tmp_path: Path) -> None:
    import torch

    if name == "LunarLander-v3":
        pytest.importorskip("Box2D")
    whole = open_vectors(name, 3, seed_of)
    actions = drawn(whole, before + 230)
    for a in actions[:before]:
        whole.step(a)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)  # as a checkpoint does
    resumed = open_vectors(name, 3, lambda i, episode: 100 * i + episode)
    for a in actions[:7]:  # whatever it did before
        resumed.step(a)
    resumed.load_state_dict(state)
    ends = 0
    for a in actions[before:]:
        np.testing.assert_array_equal(resumed.observations, whole.observations)
        np.testing.assert_array_equal(resumed.waiting, whole.waiting)
        ours, theirs = resumed.step(a), whole.step(a)
        for field in ("rewards", "terminated", "truncated", "valid", "final"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
        ends += int((ours.terminated | ours.truncated).sum())
    assert ends >= 3, "too few episodes ended: this test would show little"
    again = open_vectors(name, 3, seed_of)
    again.load_state_dict(resumed.state_dict())  # a resumed run can be resumed
    np.testing.assert_array_equal(again.observations, whole.observations)


def test_a_state_is_a_copy_and_old_actions_are_forgotten() -> None:
    for name in ("CartPole-v1", "ShortCartPoleOneByOne-v0"):
        vectors = open_vectors(name, 3, seed_of)
        state = vectors.state_dict()
        text = str(state)
        actions = drawn(vectors, 2500)
        for a in actions:
            vectors.step(a)
        assert str(state) == text
        if isinstance(vectors, EpisodeVectors):
            assert len(vectors.actions) <= 1100
            assert len(vectors.state_dict()["actions"]) <= 12
