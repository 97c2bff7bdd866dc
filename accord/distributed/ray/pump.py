"""Keeps workers busy while the learner trains: a thread that hands out chunks and takes in what has been sampled.

The learner decides which chunks may be sampled (``allow``), publishes weights, and takes finished chunks; the thread alone
uses the pool.  No more chunks are under way or waiting than the learner has allowed, which bounds the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from accord.distributed.ray.pool import Job, Pool
from accord.distributed.ray.weights import Weights
from accord.distributed.ray.worker import Sampled
from accord.rollout.chunks import Chunks

PAUSE = 0.05
"""Seconds after which the thread looks for new chunks and weights, where no worker has finished."""


@dataclass(frozen=True, slots=True)
class State:
    """What is under way at one moment."""

    sampling: dict[int, int]
    """Chunk: version of the weights that were newest when a worker got it."""
    arrived: list[Sampled]
    """In the order of arrival."""


class Pump:
    """Samples the chunks that are allowed, in their order, each with the newest weights of the moment when it begins."""

    def __init__(self, pool: Pool, workers: int, chunks: Chunks, in_flight_updates: bool) -> None:
        self._pool, self._workers, self._chunks, self._in_flight = pool, workers, chunks, in_flight_updates
        self._changed = threading.Condition()
        self._allowed: deque[int] = deque()
        self._sampling: dict[int, int] = {}
        self._arrived: list[Sampled] = []
        self._weights: Weights | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="accord rollouts", daemon=True)
        self._thread.start()

    # --------------------------------------------------------------------------------- the learner's side
    def publish(self, weights: Weights) -> None:
        """New weights, for every chunk that begins from now on."""
        with self._changed:
            self._weights = weights
            self._changed.notify_all()

    def allow(self, numbers: Collection[int]) -> None:
        """Has these chunks sampled, after those that were allowed before."""
        with self._changed:
            self._allowed.extend(numbers)
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[State], bool]) -> State:
        """What is under way as soon as ``enough`` says that the learner can continue.  Raises what stopped the thread."""
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                state = State(dict(self._sampling), list(self._arrived))
                if enough(state):
                    return state
                self._changed.wait(1.0)

    def take(self, numbers: Collection[int]) -> list[Sampled]:
        """These chunks, which have arrived, in their order of arrival."""
        with self._changed:
            taken = [sampled for sampled in self._arrived if sampled.number in numbers]
            self._arrived = [sampled for sampled in self._arrived if sampled.number not in numbers]
            return taken

    def close(self) -> None:
        """Ends the thread and the workers."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.close()

    # --------------------------------------------------------------------------------- the thread
    def _run(self) -> None:
        offered: Weights | None = None
        try:
            while not self._stopped:
                with self._changed:
                    weights = self._weights
                    jobs = self._next_jobs(weights) if weights is not None else []
                    if not jobs and not self._sampling:
                        self._changed.wait(PAUSE)
                if self._in_flight and weights is not offered:
                    for actor in self._pool.actors():
                        actor.update.remote(weights)
                    offered = weights
                for job in jobs:
                    self._pool.submit(job)
                if results := self._pool.collect(PAUSE):
                    self._add([sampled for _, sampled in results])
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_jobs(self, weights: Weights) -> list[Job]:
        """A chunk for each worker that has none."""
        jobs = []
        while self._allowed and len(self._sampling) < self._workers:
            number = self._allowed.popleft()
            self._sampling[number] = weights.version
            doing = f"sampling chunk {number} with the weights of rollout {weights.version}"
            jobs.append(Job(number, "collect", (self._chunks[number], weights), doing))
        return jobs

    def _add(self, results: list[Any]) -> None:
        with self._changed:
            for sampled in results:
                del self._sampling[sampled.number]
                self._arrived.append(sampled)
            self._changed.notify_all()
