"""The actor that acts in environments: its own copy of the policy, and some of the environments of a rollout."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accord.config.control import ControlPPOConfig
from accord.distributed.ray.place import Place
from accord.distributed.ray.weights import Received, Weights
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.collect import StepActor, StepCollector, StepRollout
from accord.rollout.env.gym import open_vectors
from accord.rollout.env.normalization import FixedScales
from accord.rollout.env.spaces import Spaces
from accord.runtime import seeds

OpenActor = Callable[[ControlPPOConfig, Spaces], StepActor]
"""(config, spaces) to a policy of the learner's form: a function of a module, by its name."""
COLUMNS = ("observations", "actions", "rewards", "values", "log_probs", "dones", "bootstraps")


@dataclass(frozen=True, slots=True)
class StepSetup:
    """What a worker needs to begin, apart from weights."""

    config: dict[str, Any]
    open_actor: OpenActor
    place: Place


@dataclass(frozen=True, slots=True)
class Steps:
    """``n_steps`` of a worker's environments; arrays as in ``StepRollout``, observations and rewards not normalized."""

    chunk: int
    lane: int
    version: int
    """Of the weights that acted."""
    columns: dict[str, np.ndarray]
    last_values: np.ndarray
    valid: np.ndarray | None
    returns: tuple[float, ...]
    episodes: int
    """That ended in this worker since the start of training."""
    last_observations: np.ndarray
    waiting: np.ndarray
    """(n,) bool: environments whose next step takes no action."""
    cuts: tuple[tuple[int, np.ndarray, np.ndarray], ...]
    state: dict[str, Any]
    """Of the collector after these steps."""
    seconds: float


@dataclass(frozen=True, slots=True)
class LaneRandomness:
    """The random draws of one worker; those of worker 0 are those of a single process."""

    seed: int
    lane: int

    def generator(self, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator:
        lane = (self.lane,) if self.lane else ()
        return seeds.generator(self.seed, purpose, *counters, *lane, device=device)


class StepWorker:
    """Environments ``lane`` · n … of a rollout's, n to a worker, and one version of the weights."""

    def __init__(self, lane: int, setup: StepSetup) -> None:
        setup.place.enter()
        config = ControlPPOConfig.model_validate(setup.config)
        torch.set_num_threads(config.rollout.threads)
        training = config.training
        n_envs = training.n_envs // config.rollout.workers
        first, seed = lane * n_envs, config.seed
        vectors = open_vectors(
            config.environment,
            n_envs,
            lambda i, episode: seeds.derive(seed, "environment", first + i, episode),
            config.environment_args,
        )
        spaces = vectors.spaces
        actor = setup.open_actor(config, spaces)
        sizes = (training.n_steps, spaces.obs_dim, n_envs, training.gamma, training.gae_lambda)
        normalize = config.normalize
        self._scales = FixedScales(spaces.obs_dim, n_envs, training.gamma, normalize.observations, normalize.clip)
        buffer = RolloutBuffer(*sizes, continuous=spaces.action_length)
        self._collector = StepCollector(LaneRandomness(seed, lane), actor, vectors, self._scales, buffer)
        self._received = Received(actor.model)
        self._lane, self._next = lane, 0

    def collect(self, chunk: int, weights: Weights, statistics: dict[str, Any], state: dict[str, Any] | None) -> Steps:
        """The next steps of the environments, which continue from ``state`` where they are not there already.

        ``statistics``: by which this version of the policy sees observations; empty where it sees them as they are.
        """
        started = time.perf_counter()
        if chunk != self._next:
            assert state is not None
            self._collector.load_state_dict(state)
        self._received.take(weights)
        collector, scales = self._collector, self._scales
        collector.observations = scales.begin(statistics, collector.vectors.observations)
        rollout: StepRollout = collector.collect(chunk)
        self._next = chunk + 1
        return Steps(
            chunk,
            self._lane,
            self._received.version,
            {
                **{name: getattr(rollout.buffer, name).numpy().copy() for name in COLUMNS},
                "observations": np.stack(scales.raw[:-1]),
            },
            rollout.last_values,
            rollout.valid,
            rollout.returns,
            rollout.episodes,
            scales.raw[-1],
            collector.vectors.waiting.copy(),
            tuple((t, which, raw) for (t, which, _), raw in zip(rollout.cuts, scales.cut, strict=True)),
            collector.state_dict(),
            time.perf_counter() - started,
        )
