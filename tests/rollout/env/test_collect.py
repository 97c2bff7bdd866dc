"""The step collector: what a rollout holds, in NumPy and in torch alike, and what it remembers between rollouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accord.models.heads import ActorCritic, AnyActorCritic, GaussianActorCritic, numpy_networks
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.collect import StepActor, StepCollector, StepRollout
from accord.rollout.env.episodes import EpisodeVectors, Vectors
from accord.rollout.env.gym import open_vectors
from accord.rollout.env.normalization import Normalizer
from accord.rollout.env.spaces import Spaces
from accord.runtime.run import Run

NewRun = Callable[..., Run]
PATHS = pytest.mark.parametrize("quick", [False, True], ids=["torch", "numpy"])


class Episode:
    """Observes (episode, step) and rewards the step; ends at its third."""

    def __init__(self) -> None:
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0.0], dtype=np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        seen = np.array([self.episode, self.steps], dtype=np.float32)
        return seen, float(self.steps), self.steps == 3, False, {"ref_logprob": -0.25 * float(action)}


def episodes(n: int = 1, with_reference: bool = False) -> EpisodeVectors:
    return EpisodeVectors([Episode() for _ in range(n)], Spaces(2, 3), lambda i, e: 0, with_reference)


def policy(obs_dim: int = 2, action_dim: int = 3, continuous: bool = False) -> AnyActorCritic:
    torch.manual_seed(0)
    kind = GaussianActorCritic if continuous else ActorCritic
    return kind(obs_dim, action_dim, 8)


def collector(
    run: Run,
    model: AnyActorCritic,
    vectors: Vectors,
    quick: bool = True,
    n_steps: int = 8,
    normalizer: Normalizer | None = None,
) -> StepCollector:
    spaces, n = vectors.spaces, len(vectors.observations)
    width = spaces.action_dim if spaces.continuous else 0
    buffer = RolloutBuffer(n_steps, spaces.obs_dim, n, 0.99, 0.95, continuous=width)
    actor = StepActor(model, numpy_networks(model) if quick else None)
    plain = Normalizer(spaces.obs_dim, n, 0.99, observations=False, rewards=False)
    return StepCollector(run, actor, vectors, normalizer or plain, buffer)


# ------------------------------------------------------------------------------------- one rollout
@PATHS
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_log_probs_and_values_are_the_models(new_run: NewRun, name: str, quick: bool) -> None:
    vectors = open_vectors(name, 2, lambda i, episode: 10 * i + episode)
    model = policy(vectors.spaces.obs_dim, vectors.spaces.action_dim, vectors.spaces.continuous)
    rollout = collector(new_run(), model, vectors, quick, n_steps=40).collect(0)
    buffer = rollout.buffer
    with torch.no_grad():
        log_probs, values, _ = model.evaluate(buffer.observations, buffer.actions)
        torch.testing.assert_close(buffer.log_probs, log_probs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffer.values, values, rtol=1e-4, atol=1e-5)
        last = model.value(torch.from_numpy(vectors.observations)).numpy()
    np.testing.assert_allclose(rollout.last_values, last, rtol=1e-4, atol=1e-5)


@PATHS
def test_a_rollout_holds_the_tasks_rewards_and_the_references_logprobs_apart(new_run: NewRun, quick: bool) -> None:
    """The collector knows no KL coefficient: what a penalty costs is for the algorithm."""
    rollout = collector(new_run(), policy(), episodes(2, with_reference=True), quick).collect(0)
    assert rollout.buffer.rewards.tolist() == [[1 + t % 3] * 2 for t in range(8)]
    assert rollout.ref_logprobs is not None
    assert rollout.ref_logprobs.dtype == np.float64
    np.testing.assert_array_equal(rollout.ref_logprobs, -0.25 * rollout.buffer.actions.numpy())
    assert rollout.valid is None  # every action was taken
    assert collector(new_run("without"), policy(), episodes(), quick).collect(0).ref_logprobs is None


@PATHS
def test_the_actions_of_an_iteration_are_those_of_its_number(new_run: NewRun, quick: bool) -> None:
    found = []
    for number, iteration in enumerate((0, 0, 1)):
        made = collector(new_run(str(number)), policy(), episodes(), quick)
        found.append(made.collect(iteration).buffer.actions.tolist())
    assert found[0] == found[1] != found[2]


def test_building_a_collector_leaves_the_models_storage_alone(new_run: NewRun) -> None:
    for quick in (False, True):
        model = policy()
        actor = StepActor(model, numpy_networks(model) if quick else None)
        places = [p.data_ptr() for p in model.parameters()]
        weights = [p.detach().clone() for p in model.parameters()]
        vectors = episodes()
        normalizer = Normalizer(2, 1, 0.99, observations=True, rewards=True)
        made = StepCollector(new_run(str(quick)), actor, vectors, normalizer, RolloutBuffer(8, 2, 1, 0.99, 0.95))
        made.collect(0)
        assert [p.data_ptr() for p in model.parameters()] == places
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


# ------------------------------------------------------------------------------------- between rollouts
def test_returns_continue_across_rollouts(new_run: NewRun) -> None:
    made = collector(new_run(), policy(), episodes(), n_steps=4)
    found = [made.collect(i) for i in range(3)]
    assert [r.returns for r in found] == [(6.0,), (6.0,), (6.0, 6.0)]
    assert [r.recent_returns for r in found] == [(6.0,) * n for n in (1, 2, 4)]
    assert [r.episodes for r in found] == [1, 2, 4]
    assert [r.timesteps for r in found] == [4, 8, 12]


def test_recent_returns_are_those_of_a_hundred_episodes(new_run: NewRun) -> None:
    rollout = collector(new_run(), policy(), episodes(), n_steps=360).collect(0)
    assert len(rollout.returns) == rollout.episodes == 120
    assert len(rollout.recent_returns) == 100


def contents(rollout: StepRollout) -> list[Any]:
    tensors = (rollout.buffer.observations, rollout.buffer.actions, rollout.buffer.rewards, rollout.buffer.values)
    return [*(t.tolist() for t in tensors), rollout.last_values.tolist(), rollout.returns, rollout.episodes]


@PATHS
@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
def test_a_saved_state_resumes_bit_exactly(new_run: NewRun, tmp_path: Path, name: str, quick: bool) -> None:
    def made(number: str) -> StepCollector:
        vectors = open_vectors(name, 2, lambda i, episode: 10 * i + episode)
        spaces = vectors.spaces
        normalizer = Normalizer(spaces.obs_dim, 2, 0.99, observations=True, rewards=True)
        return collector(new_run(number), policy(spaces.obs_dim, spaces.action_dim), vectors, quick, 60, normalizer)

    whole = made("whole")
    whole.collect(0)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = [contents(whole.collect(i)) for i in (1, 2)]
    resumed = made("resumed")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [contents(resumed.collect(i)) for i in (1, 2)] == expected
