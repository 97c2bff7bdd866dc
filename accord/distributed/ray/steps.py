"""Steps of environments in workers on Ray, for PPO on Gymnasium tasks: IMPALA's actors and learner.

Worker w has the environments w · n … (w + 1) · n − 1 of a rollout, and goes on with them from rollout to rollout.  It may
begin the steps of rollout k as soon as the weights of rollout k − ``max_staleness`` are there, and takes the newest.  A
rollout is the k-th steps of every worker: which weights acted depends on timing, which steps belong to it does not.
(Espeholt et al. 2018, arXiv 1802.01561, take trajectories as they arrive instead; there a slow actor is used less often.)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from accord.config.control import ControlPPOConfig
from accord.distributed.ray.cluster import connected, require_cpus, require_ray
from accord.distributed.ray.place import Place
from accord.distributed.ray.pool import Job, Pool
from accord.distributed.ray.step_worker import COLUMNS, OpenActor, Steps, StepSetup, StepWorker
from accord.distributed.ray.weights import Publisher, Weights, flat_weights
from accord.errors import UserError
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.collect import StepRollout
from accord.rollout.env.normalization import Normalizer
from accord.runtime.run import Run


@dataclass(frozen=True, slots=True)
class Learner:
    """What workers follow, and what a rollout is put into."""

    model: nn.Module
    normalizer: Normalizer
    """Its statistics are those of the steps of all workers, rollout after rollout; a part of the policy's version."""
    buffer: RolloutBuffer


CPUS = 0.5
"""Of the cluster, for each worker: half of the time it waits for its small networks' new weights."""
PAUSE = 0.02
"""Seconds after which the thread looks for new weights, where no worker has finished."""


def require_step_workers(config: ControlPPOConfig) -> None:
    """Raises UserError for settings that workers cannot follow."""
    workers, environments = config.rollout.workers, config.training.n_envs
    if environments % workers:
        raise UserError(
            f"training.n_envs ({environments}) must be a multiple of rollout.workers ({workers}), which share the environments."
        )


@contextmanager
def remote_steps(config: ControlPPOConfig, learner: Learner, open_actor: OpenActor, run: Run) -> Iterator[RemoteSteps]:
    """The rollouts of workers on Ray, until the end of the block.

    Raises UserError where the cluster cannot be reached, or is too small.
    """
    ray, settings = require_ray(), config.rollout
    with ExitStack() as stack:
        require_cpus(stack.enter_context(connected(settings.address)), settings.workers, CPUS)
        actor = ray.remote(StepWorker).options(num_cpus=CPUS)
        place = ray.put(StepSetup(config.model_dump(), open_actor, Place.here()))
        pool = Pool(lambda number: actor.remote(number, place), settings.workers, settings.timeout_seconds, run.say)
        pump = StepPump(pool, settings.workers, settings.max_staleness)
        stack.callback(pump.close)
        yield RemoteSteps(pump, learner, settings.workers, run)


class StepPump:
    """Keeps every worker busy while the learner trains: a thread that alone uses the pool."""

    def __init__(self, pool: Pool, workers: int, max_staleness: int) -> None:
        self._pool, self._max_staleness = pool, max_staleness
        self._changed = threading.Condition()
        self._weights: Weights | None = None
        self._statistics: dict[str, Any] = {}
        self._next = [0] * workers  # the rollout whose steps each worker begins next
        self._busy = [False] * workers
        self._states: list[dict[str, Any] | None] = [None] * workers
        self._arrived: dict[tuple[int, int], Steps] = {}  # by rollout and worker
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="accord steps", daemon=True)

    def start(self, first: int, states: list[dict[str, Any] | None]) -> None:
        """Begins with rollout ``first``, from these states of the workers."""
        self._next, self._states = [first] * len(states), list(states)
        self._thread.start()

    def publish(self, weights: Weights, statistics: dict[str, Any]) -> None:
        """New weights and statistics of observations, for all steps that begin from now on."""
        with self._changed:
            self._weights, self._statistics = weights, statistics
            self._changed.notify_all()

    def take(self, rollout: int) -> list[Steps]:
        """The steps of a rollout, worker after worker; waits for them.  Raises what stopped the thread."""
        keys = [(rollout, worker) for worker in range(len(self._next))]
        with self._changed:
            while not all(key in self._arrived for key in keys):
                if self._error is not None:
                    raise self._error
                self._changed.wait(1.0)
            return [self._arrived.pop(key) for key in keys]

    def close(self) -> None:
        """Ends the thread and the workers."""
        self._stopped = True
        if self._thread.is_alive():
            self._thread.join()
        self._pool.close()

    def _run(self) -> None:
        try:
            while not self._stopped:
                with self._changed:
                    jobs = self._next_jobs()
                    if not jobs and not any(self._busy):
                        self._changed.wait(PAUSE)
                for job in jobs:
                    self._pool.submit(job)
                for _, steps in self._pool.collect(PAUSE):
                    self._add(steps)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_jobs(self) -> list[Job]:
        """The next steps of each worker that has none to take and may begin them."""
        jobs, weights = [], self._weights
        for worker, rollout in enumerate(self._next):
            if weights is None or self._busy[worker] or rollout > weights.version + self._max_staleness:
                continue
            self._busy[worker] = True
            doing = f"stepping environments for rollout {rollout} with the weights of rollout {weights.version}"
            arguments = (rollout, weights, self._statistics, self._states[worker])
            jobs.append(Job((rollout, worker), "collect", arguments, doing, worker))
        return jobs

    def _add(self, steps: Steps) -> None:
        with self._changed:
            self._arrived[steps.chunk, steps.lane] = steps
            self._states[steps.lane] = steps.state
            self._next[steps.lane], self._busy[steps.lane] = steps.chunk + 1, False
            self._changed.notify_all()


class RemoteSteps:
    """The source of rollouts whose steps come from workers."""

    def __init__(self, pump: StepPump, learner: Learner, workers: int, run: Run) -> None:
        self._pump, self._learner, self._run = pump, learner, run
        self._publisher = Publisher("full")
        self._states: list[dict[str, Any] | None] = [None] * workers
        self._episodes = [0] * workers
        self._recent_returns: deque[float] = deque(maxlen=100)
        self._observations: np.ndarray | None = None  # normalized, before the next rollout's first step
        self._started = self._resumed = False

    def collect(self, iteration: int) -> StepRollout:
        """The rollout of an iteration, with the version of the weights that acted in each environment."""
        began = time.perf_counter()
        seen = self._learner.normalizer.seen
        weights, size = self._publisher.publish(iteration, flat_weights(self._learner.model, "float32"))
        self._pump.publish(weights, seen.state_dict() if seen else {})
        if not self._started:
            self._pump.start(iteration, self._states)
            self._started = True
        parts = self._pump.take(iteration)
        waited = time.perf_counter() - began
        self._states = [part.state for part in parts]
        self._episodes = [part.episodes for part in parts]
        returns = tuple(value for part in parts for value in part.returns)
        self._recent_returns.extend(returns)
        received = sum(array.nbytes for part in parts for array in part.columns.values())
        seconds = sum(part.seconds for part in parts)
        sizes = {"published_mb": size / 1e6, "received_mb": received / 1e6}
        self._run.record({"wait_seconds": waited, "worker_seconds": seconds, **sizes}, prefix="ray/")
        return self._rollout(parts, iteration, returns)

    def _rollout(self, parts: list[Steps], iteration: int, returns: tuple[float, ...]) -> StepRollout:
        buffer = self._learner.buffer
        rows = buffer.begin()
        for name in COLUMNS:
            rows[name][:] = np.concatenate([part.columns[name] for part in parts], axis=1)
        valid = _valid(parts, buffer.n_steps)
        cuts = sorted((cut for part in parts for cut in _placed(part, len(parts))), key=lambda cut: cut[0])
        last = np.concatenate([part.last_observations for part in parts])
        takes = np.concatenate([valid[1:], [~np.concatenate([part.waiting for part in parts])]])
        cuts = self._normalize(rows, last, valid, takes, cuts)
        buffer.end()
        assert self._observations is not None
        return StepRollout(
            buffer,
            np.concatenate([part.last_values for part in parts]),
            None if valid.all() else valid.reshape(-1),
            None,
            returns,
            tuple(self._recent_returns),
            sum(self._episodes),
            (iteration + 1) * buffer.n_steps * buffer.n_envs,
            self._observations,
            tuple(cuts),
            np.repeat([part.version for part in parts], buffer.n_envs // len(parts)),
        )

    def _normalize(
        self, rows: dict[str, np.ndarray], last: np.ndarray, valid: np.ndarray, takes: np.ndarray, cuts: list[Cut]
    ) -> list[Cut]:
        """Observations and rewards of the rollout in place, the cuts' observations in new ones: as in ``StepCollector``.

        ``takes`` (n_steps, n_envs): whether the observation after a step is one that an action is taken on.

        Behavior log-probs are of the policy that acted, its statistics included: old statistics are a part of old weights.
        """
        normalizer, observations, rewards = self._learner.normalizer, rows["observations"], rows["rewards"]
        if self._observations is None:
            self._observations = normalizer.observations(observations[0].copy(), learn=not self._resumed)
        current, scaled_cuts = self._observations, list[Cut]()
        for t in range(len(observations)):
            scaled_cuts += [(t, which, normalizer.observations(raw, learn=False)) for at, which, raw in cuts if at == t]
            following = last if t + 1 == len(observations) else observations[t + 1].copy()
            observations[t] = current
            current = normalizer.observations(following, takes[t])
        for t in range(len(rewards)):
            rewards[t] = normalizer.rewards(rewards[t].astype(np.float64), rows["dones"][t] & valid[t], valid[t])
        self._observations = current
        return scaled_cuts

    def state_dict(self) -> dict[str, Any]:
        """The workers' states after the last rollout that was trained on; what they have done since is done again."""
        return {
            "workers": [state or {} for state in self._states],
            "episodes": list(self._episodes),
            "recent_returns": list(self._recent_returns),
            "normalizer": self._learner.normalizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states = [worker or None for worker in state["workers"]]
        self._episodes = list(state["episodes"])
        self._recent_returns = deque(state["recent_returns"], maxlen=100)
        self._learner.normalizer.load_state_dict(state["normalizer"])
        self._resumed = True


Cut = tuple[int, np.ndarray, np.ndarray]
"""Step, which environments a time limit cut there, and their final observations."""


def _valid(parts: list[Steps], n_steps: int) -> np.ndarray:
    """(n_steps, n_envs) which steps took an action."""
    columns = [
        np.ones((n_steps, len(part.last_values)), dtype=bool) if part.valid is None else part.valid.reshape(n_steps, -1)
        for part in parts
    ]
    return np.concatenate(columns, axis=1)


def _placed(part: Steps, workers: int) -> Iterator[Cut]:
    """A worker's cuts, with its environments among those of all workers."""
    own = len(part.last_values)
    for t, which, final in part.cuts:
        everywhere = np.zeros(own * workers, dtype=bool)
        everywhere[part.lane * own : (part.lane + 1) * own] = which
        yield t, everywhere, final
