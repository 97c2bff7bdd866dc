"""Environments in workers: in step, a rollout is that of one process; ahead of the learner, its age is bounded."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo_control import new_buffer, open_actor
from accord.config.control import ControlPPOConfig
from accord.config.load import build
from accord.config.ppo import PPO
from accord.distributed.ray.place import Place
from accord.distributed.ray.step_worker import COLUMNS, LaneRandomness, Steps, StepSetup, StepWorker
from accord.distributed.ray.steps import PAUSE, Learner, RemoteSteps, StepPump, remote_steps
from accord.errors import Interrupted, UserError
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.collect import StepCollector, StepRollout
from accord.rollout.env.gym import open_vectors
from accord.rollout.env.normalization import FixedScales, Normalizer
from accord.runtime.run import Run

TRAINING = {
    "n_envs": 4,
    "n_steps": 16,
    "total_timesteps": 448,
    "batch_size": 64,
    "learning_rate": 0.01,
    "num_epochs": 2,
}


def values(workers: int = 2, **more: Any) -> dict[str, Any]:
    settings = {"environment": "CartPole-v1", "training": TRAINING, "evaluation": {"episodes": 0, "curve": False}}
    return {**settings, "rollout": {"engine": "ray", "workers": workers, **more}}


def config_of(workers: int = 2, environment: str = "CartPole-v1", **more: Any) -> ControlPPOConfig:
    config = build(PPO, {**values(workers, **more), "environment": environment, "seed": 7}, {}, "the test")
    assert isinstance(config, ControlPPOConfig)
    return config


def final(tmp_path: Path, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(tmp_path / "out" / name / "ppo_final.pt", weights_only=True)[
        "model_state_dict"
    ]
    return found


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


# ------------------------------------------------------------------------------------- without a cluster
def test_a_new_worker_goes_on_from_anothers_state_as_that_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it safe to do lost work again: steps are a function of the arguments."""
    setup = StepSetup(config_of().model_dump(), open_actor, Place(os.getcwd(), ()))
    monkeypatch.setattr("accord.distributed.ray.weights.Received.take", lambda self, weights: None)
    monkeypatch.setattr("accord.distributed.ray.weights.Received.version", 0, raising=False)
    torch.manual_seed(3)
    first = StepWorker(1, setup)
    torch.manual_seed(3)
    second = StepWorker(1, setup)
    state = [first.collect(rollout, None, {}, None) for rollout in range(3)][-1].state  # type: ignore[arg-type]
    alone = first.collect(3, None, {}, None)  # type: ignore[arg-type]
    again = second.collect(3, None, {}, state)  # type: ignore[arg-type]
    for name, column in alone.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    assert alone.returns == again.returns
    assert alone.episodes == again.episodes > 0
    assert alone.lane == 1


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])  # autoreset in a step of its own; time limits
def test_rollouts_are_normalized_as_those_of_one_process(environment: str) -> None:
    """Of a policy that does not look: its actions are the same on raw and on normalized observations."""
    n_envs, n_steps = 3, 120

    def collector(normalizer: Normalizer) -> StepCollector:
        vectors = open_vectors(environment, n_envs, lambda i, e: 10 * i + e)
        config = config_of(environment=environment)
        actor = open_actor(config, vectors.spaces)
        for parameter in actor.model.parameters():
            parameter.data.zero_()
        sizes = (n_steps, vectors.spaces.obs_dim, n_envs, 0.99, 0.95)
        buffer = RolloutBuffer(*sizes, continuous=vectors.spaces.action_length)
        return StepCollector(LaneRandomness(3, 0), actor, vectors, normalizer, buffer)

    obs_dim = open_vectors(environment, 1, lambda i, e: 0).spaces.obs_dim
    there, here = (Normalizer(obs_dim, n_envs, 0.99, observations=True, rewards=True) for _ in range(2))
    scales = FixedScales(obs_dim, n_envs, 0.99, observations=False, clip=10.0)
    local, worker = collector(there), collector(scales)
    learner = Learner(worker.actor.model, here, new_like(worker.buffer))
    source = RemoteSteps(None, learner, 1, None)  # type: ignore[arg-type]
    for iteration in range(3):
        expected = local.collect(iteration)
        worker.observations = scales.begin({}, worker.vectors.observations)
        steps = steps_of(worker.collect(iteration), scales, worker)
        found = source._rollout([steps], iteration, ())
        for name in ("observations", "rewards", "actions", "dones"):
            ours, theirs = (getattr(rollout.buffer, name).numpy() for rollout in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.last_observations, expected.last_observations, rtol=1e-5, atol=1e-5)
        assert len(found.cuts) == len(expected.cuts)
        for (t, which, final), (s, those, last) in zip(found.cuts, expected.cuts, strict=True):
            assert t == s
            np.testing.assert_array_equal(which, those)
            np.testing.assert_allclose(final, last, rtol=1e-5, atol=1e-5)
        assert (found.valid is None) == (expected.valid is None)
    assert here.seen is not None
    assert there.seen is not None
    assert here.seen.count == there.seen.count > 3 * n_envs * n_steps / 2
    np.testing.assert_allclose(here.seen.variance, there.seen.variance, rtol=1e-6)


def new_like(buffer: RolloutBuffer) -> RolloutBuffer:
    continuous = buffer.actions.shape[2] if buffer.actions.dim() > 2 else 0
    return RolloutBuffer(buffer.n_steps, buffer.obs_shape, buffer.n_envs, 0.99, 0.95, continuous=continuous)


def steps_of(rollout: StepRollout, scales: FixedScales, worker: StepCollector) -> Steps:
    """What a worker sends."""
    columns = {name: getattr(rollout.buffer, name).numpy().copy() for name in COLUMNS}
    cuts = tuple((t, which, raw) for (t, which, _), raw in zip(rollout.cuts, scales.cut, strict=True))
    waiting = worker.vectors.waiting.copy()
    more = (rollout.last_values, rollout.valid, (), 0, scales.raw[-1], waiting, cuts, {}, 0.0)
    return Steps(0, 0, 0, {**columns, "observations": np.stack(scales.raw[:-1])}, *more)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rollout": {"engine": "ray", "workers": 3}},
            r"training\.n_envs \(4\) must be a multiple of rollout\.workers \(3\)",
        ),
    ],
)
def test_what_workers_cannot_follow_is_refused_in_a_sentence(stage: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        stage("ppo", {**values(), **changes})


def test_a_pump_without_work_waits_instead_of_asking_again_and_again() -> None:
    class Idle:
        asked = 0

        def collect(self, timeout: float) -> list[Any]:
            self.asked += 1
            return []

        def close(self) -> None: ...

    pool = Idle()
    pump = StepPump(pool, 2, 0)  # type: ignore[arg-type]
    pump.start(0, [None, None])
    time.sleep(0.5)
    pump.close()
    assert pool.asked <= 0.5 / PAUSE + 50


# ------------------------------------------------------------------------------------- on a cluster
def test_in_step_one_worker_trains_the_weights_of_one_process(cluster: Any, stage: Any, tmp_path: Path) -> None:
    stage("ppo", {**values(), "rollout": {}}, "local")
    stage("ppo", values(1), "remote")
    assert_same(final(tmp_path, "local"), final(tmp_path, "remote"))


def test_in_step_timing_and_a_killed_worker_change_nothing(
    cluster: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage("ppo", values(2), "whole")
    collect, killed = RemoteSteps.collect, []

    def kill_a_worker(self: RemoteSteps, iteration: int) -> Any:
        if iteration == 3:
            words = self._pump._pool.describe()[1]
            killed.append(int(words.split("process ")[1].split()[0]))
            os.kill(killed[0], signal.SIGKILL)
        return collect(self, iteration)

    monkeypatch.setattr(RemoteSteps, "collect", kill_a_worker)
    stage("ppo", values(2), "cut")
    assert killed
    log = (tmp_path / "logs" / "cut" / "cut.log").read_text(encoding="utf-8")
    assert f"worker 1 (process {killed[0]}" in log
    assert_same(final(tmp_path, "whole"), final(tmp_path, "cut"))


def test_in_step_a_stopped_run_resumes_to_the_same_weights(
    cluster: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage("ppo", values(2), "whole")
    tick = Run.tick

    def stop_at_five(self: Run, metrics: Any) -> None:  # in the middle of the third rollout's updates
        tick(self, metrics)
        self.stop.raised = self.step == 5

    with monkeypatch.context() as patch:
        patch.setattr(Run, "tick", stop_at_five)
        with pytest.raises(Interrupted):
            stage("ppo", values(2), "cut")
    done = stage("ppo", values(2), "cut", resume=True)
    assert_same(final(tmp_path, "whole"), final(tmp_path, "cut"))
    assert done.metrics["timesteps"] == 448


def test_ahead_of_the_learner_the_weights_are_at_most_so_old_and_the_rollouts_are_corrected(
    cluster: Any, stage: Any, lines: Any
) -> None:
    done = stage("ppo", values(2, max_staleness=2))
    rollouts = [row for row in lines("ppo") if "rollout/age_max" in row]
    ages = [row["rollout/age_max"] for row in rollouts]
    assert len(ages) == 7
    assert ages[0] == 0
    assert 0 < max(ages) <= 2
    assert all((row["rollout/ess"] < 1) == (row["rollout/age_max"] > 0) for row in rollouts[1:])
    assert done.metrics["timesteps"] == 448
    assert rollouts[-1]["rollout/episodes"] > 10


def test_a_rollout_names_the_version_that_acted_in_each_environment(cluster: Any, open_run: Any) -> None:
    config = config_of(2, max_staleness=1)
    with open_run(seed=7) as run:
        assert isinstance(run, Run)
        spaces = open_vectors("CartPole-v1", 1, lambda i, e: 0).spaces
        actor, buffer = open_actor(config, spaces), new_buffer(spaces, config.training)
        plain = Normalizer(spaces.obs_dim, 4, 0.99, observations=False, rewards=False)
        with remote_steps(config, Learner(actor.model, plain, buffer), open_actor, run) as source:
            for iteration in range(4):
                rollout = source.collect(iteration)
                assert rollout.versions is not None
                assert rollout.versions.shape == (4,)
                assert ((iteration - 1 <= rollout.versions) & (rollout.versions <= iteration)).all()
                rows = rollout.buffer.rows()
                flat = (rows[name].reshape(64, *rows[name].shape[2:]) for name in ("observations", "actions"))
                logprobs, _ = actor.score(*flat)  # the weights never change here: every version is the same policy
                np.testing.assert_allclose(rows["log_probs"].reshape(-1), logprobs, rtol=0, atol=1e-5)
