"""Actors that work off jobs, watched: one that dies, hangs or loses its node is replaced, and its job is done again.

A job must be a function of its arguments alone, so that doing it again gives the same result.  Every job's result is
returned exactly once, whatever happens to the actors.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from accord.distributed.ray.cluster import is_reachable, nodes
from accord.errors import Failed, UserError

ATTEMPTS = 3
"""How many actors in a row may end with the same job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A call of an actor's method."""

    key: Hashable
    method: str
    arguments: tuple[Any, ...]
    doing: str
    """What it is, as in "writing chunk 2 of rollout 7 with weights 5"."""
    worker: int | None = None
    """The number of the worker that does it, where it holds what the job continues from; None: any."""


@dataclass(slots=True)
class _Slot:
    """The place of one actor, and of those that replace it."""

    number: int
    actor: Any
    asked: Any
    """The reference of its answer that it is there; None once it has answered."""
    since: float = field(default_factory=time.time)
    """When it was started or got its job, in seconds since 1970."""
    node: str = ""
    where: str = "not started yet"
    job: Job | None = None
    result: Any = None


class Pool:
    """``workers`` actors, started by ``start(number)``, which returns an actor's handle.

    ``seconds``: how long a job may take before its actor counts as hung.  ``say`` is called with a sentence for each actor
    that is lost: which, since when, what it was doing.  ``start_seconds``: how long it may take that at least one actor is
    there, and every actor that a job waits for.
    """

    def __init__(
        self,
        start: Callable[[int], Any],
        workers: int,
        seconds: float,
        say: Callable[[str], None],
        start_seconds: float = 300,
    ) -> None:
        self._start, self._seconds, self._say, self._start_seconds = start, seconds, say, start_seconds
        self._waiting: deque[Job] = deque()
        self._tries: Counter[Hashable] = Counter()
        self.lost: Counter[str] = Counter()
        """How many actors were lost, by how: "died", "hung", "node"."""
        self._slots = [self._open(number) for number in range(workers)]

    def submit(self, job: Job) -> None:
        """Adds a job; it begins as soon as an actor is free."""
        self._waiting.append(job)
        self._assign()

    @property
    def unfinished(self) -> int:
        """Jobs whose results have not been returned yet."""
        return len(self._waiting) + sum(slot.job is not None for slot in self._slots)

    def actors(self) -> list[Any]:
        """The handles of the actors that are there."""
        return [slot.actor for slot in self._slots if slot.asked is None]

    def collect(self, timeout: float = 1.0) -> list[tuple[Job, Any]]:
        """The results that have come, in the order of arrival; waits up to ``timeout`` seconds for the first one.

        Does not wait where no actor is starting or at work.
        Raises UserError where a job raised it, and Failed where no actor can be started or the same job ends several.
        """
        import ray

        end = time.monotonic() + timeout
        while True:
            self._assign()
            pending = [slot.result if slot.job else slot.asked for slot in self._slots if slot.job or slot.asked]
            if not pending:
                return []
            left = max(0.0, end - time.monotonic())
            ready = ray.wait(pending, num_returns=1, timeout=min(left, 1.0))[0]
            ready = ray.wait(pending, num_returns=len(pending), timeout=0)[0] if ready else []
            done = [found for slot in self._slots if (found := self._settle(slot, ready))]
            self._find_hung()
            if done or time.monotonic() >= end:
                return done

    def close(self) -> None:
        """Ends all actors."""
        import ray

        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []

    def describe(self) -> list[str]:
        """For each actor where it is, what it is doing, and since when."""
        return [f"worker {slot.number}: {_who(slot)}, {_doing(slot)}" for slot in self._slots]

    # --------------------------------------------------------------------------------- one actor
    def _open(self, number: int) -> _Slot:
        actor = self._start(number)
        return _Slot(number, actor, actor.__ray_call__.remote(_place))

    def _assign(self) -> None:
        for slot in self._slots:
            if slot.asked is not None or slot.job is not None:
                continue
            job = next((job for job in self._waiting if job.worker in (None, slot.number)), None)
            if job is not None:
                self._waiting.remove(job)
                slot.job, slot.since = job, time.time()
                slot.result = getattr(slot.actor, job.method).remote(*job.arguments)

    def _settle(self, slot: _Slot, ready: list[Any]) -> tuple[Job, Any] | None:
        """The slot's job with its result, if it has come."""
        import ray

        reference = slot.result if slot.job else slot.asked
        if reference is None or reference not in ready:
            return None
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"worker {slot.number}: {error.cause}") from None
            raise
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise Failed(f"worker {slot.number} could not start: {str(error).strip().splitlines()[-1]}") from None
            self._replace(slot, *self._how(slot, error))
            return None
        job, slot.job, slot.result = slot.job, None, None
        if job is None:
            (slot.node, slot.where), slot.asked = value, None
            return None
        self._tries.pop(job.key, None)
        return job, value

    def _how(self, slot: _Slot, error: Exception) -> tuple[str, str]:
        import ray

        if slot.node and not is_reachable(slot.node):
            return "node", "was lost with its node"
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return "died", "was ended because memory ran out"
        return "died", "has died"

    def _find_hung(self) -> None:
        import ray

        now = time.time()
        for slot in self._slots:
            if slot.job and now - slot.since > self._seconds:
                ray.kill(slot.actor)
                self._replace(slot, "hung", f"has not answered for more than {self._seconds:g} s")
        late = [s.number for s in self._slots if s.asked is not None and now - s.since > self._start_seconds]
        needed = [number for number in late if any(job.worker == number for job in self._waiting)]
        if needed or len(late) == len(self._slots):
            who = f"worker {needed[0]} has not" if needed else "no worker has"
            found = nodes()
            cpus = sum(node.cpus for node in found)
            raise Failed(
                f"{who} started within {self._start_seconds:g} s (the cluster has {cpus:g} CPUs on {len(found)} nodes,"
                " which others may be using); add nodes, and run again to resume."
            )

    def _replace(self, slot: _Slot, kind: str, how: str) -> None:
        """Starts another actor in a slot, and puts its job in front of the waiting ones."""
        self.lost[kind] += 1
        job = slot.job
        again = "; another takes its place" + (", and that work is done again" if job else "")
        self._say(f"worker {slot.number} ({_who(slot)}) {how}, {_doing(slot)}{again}")
        if job:
            self._tries[job.key] += 1
            if self._tries[job.key] >= ATTEMPTS:
                raise Failed(
                    f"{ATTEMPTS} workers in a row were lost {job.doing}, the last one because it {how}; run again to resume."
                )
            self._waiting.appendleft(job)
        self._slots[self._slots.index(slot)] = self._open(slot.number)


def _place(actor: Any) -> tuple[str, str]:
    """In the actor's process: the id of its node, and where it is in words."""
    import ray

    return ray.get_runtime_context().get_node_id(), f"process {os.getpid()} on {socket.gethostname()}"


def _who(slot: _Slot) -> str:
    return f"{slot.where}, node {slot.node[:8]}" if slot.node else slot.where


def _doing(slot: _Slot) -> str:
    what = slot.job.doing if slot.job else "waiting for work" if slot.asked is None else "starting"
    return f"{what} since {time.strftime('%H:%M:%S', time.localtime(slot.since))}"
