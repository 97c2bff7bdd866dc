"""Settings of where rollouts are collected."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from accord.config.numbers import Coefficient, CountOrZero, Threads, TimeLimit, Workers
from accord.config.section import Section


class RolloutEngine(Section):
    """Where rollouts are collected, and how old the weights may be that collect them."""

    runtime: ClassVar[frozenset[str]] = frozenset({"address", "timeout_seconds"})
    both: ClassVar[frozenset[str]] = frozenset({"engine"})
    """Settings that ``engine: local`` has as well."""

    engine: Literal["local", "ray"] = "local"
    """local: this process collects; ray: worker processes do, on this machine or a cluster."""
    workers: Workers = 1
    """ray: the number of workers."""
    address: str = ""
    """ray: the cluster's address (auto: the one that this machine belongs to); empty: Ray is started on this machine."""
    max_staleness: CountOrZero = 0
    """ray: rollouts by which the weights of a worker may be older than those that train on what it collects; 0: synchronous."""
    threads: Threads = 1
    """ray: CPU threads of each worker, which takes as many CPUs of the cluster; one that steps environments takes half a CPU."""
    timeout_seconds: TimeLimit = 600
    """ray: a worker that takes longer for one piece of work is replaced, and another does the work."""

    @model_validator(mode="after")
    def _of_the_engine(self) -> RolloutEngine:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        changed = [name for name in defaults if name not in self.both and getattr(self, name) != defaults[name]]
        if self.engine != "ray" and changed:
            raise ValueError(f"{changed[0]} is a setting of ray; add rollout.engine=ray, or leave it out")
        if not self.threads:
            raise ValueError("threads is at least 1 for a worker, since every number rounds differently")
        return self


class TextRolloutEngine(RolloutEngine):
    """Where replies are sampled, and how old the weights may be that sample them."""

    runtime: ClassVar[frozenset[str]] = RolloutEngine.runtime | {"transfer"}
    both: ClassVar[frozenset[str]] = RolloutEngine.both | {"chunk_prompts", "lag"}

    chunk_prompts: CountOrZero = 0
    """Prompts whose replies are sampled together, a divisor of the prompts of a rollout; 0: with ray the largest that gives
    every worker one piece, otherwise all.  Changes results only by rounding."""
    score: Literal["workers", "learner"] = "workers"
    """ray: where replies are scored and read by the reference model."""
    overflow: Literal["wait", "drop"] = "wait"
    """ray: what happens to replies that would become older than max_staleness: wait trains on them first and waits for those
    that are not finished; drop leaves them out, counts them, and has others sampled."""
    in_flight_updates: bool = False
    """ray: workers change to new weights between two tokens of their replies, not only between replies."""
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    """ray: dtype in which weights are sent; bfloat16 halves the bytes, and the policy recomputes the log-probs."""
    transfer: Literal["full", "delta"] = "full"
    """ray: full sends all weights of a version; delta the changed ones, exactly, which are few in bfloat16 at small learning
    rates."""
    gpus: Coefficient = 0.0
    """ray: GPUs of each worker, may be a fraction; 0: workers sample on the CPU."""
    lag: CountOrZero = 0
    """local: sample each rollout from the weights of so many rollouts before, to measure what stale replies do; 0: the
    newest."""
    replay: str = ""
    """The ledger (a stage or file) of a run with ray and these settings: this process samples the same replies from the same
    weights, without Ray."""

    @model_validator(mode="after")
    def _lag_is_local(self) -> TextRolloutEngine:
        if self.lag and self.engine != "local":
            raise ValueError(
                "lag simulates old weights with rollout.engine=local; with ray, max_staleness bounds their age"
            )
        if self.in_flight_updates and not self.max_staleness:
            raise ValueError(
                "in_flight_updates needs max_staleness of 1 or more: no weights are published while workers sample"
            )
        return self

    @property
    def may_be_stale(self) -> bool:
        """Whether replies may come from weights older than those that train on them."""
        return self.max_staleness > 0 or self.lag > 0

    def prompts_in_chunk(self, prompts: int) -> int:
        """Prompts of a chunk of a rollout of ``prompts``.

        >>> TextRolloutEngine(engine="ray", workers=3).prompts_in_chunk(8)
        2
        """
        if self.chunk_prompts:
            return self.chunk_prompts
        share = prompts if self.engine == "local" else max(1, prompts // self.workers)
        return next(size for size in range(share, 0, -1) if prompts % size == 0)
