"""Rollouts that workers sample: synchronously, or while the learner trains, with weights of a bounded age.

Chunk n is a function of the seed, n and the weights.  At rollout k, with weights k, chunks below (k + max_staleness + 1) · C
may be sampled, C to a rollout; those that would otherwise become too old are trained on first (``wait``), so every reply is
at most ``max_staleness`` rollouts old, as in AReaL (arXiv 2505.24298, section 5.1).  With ``drop`` those that come
too late are left out and others take their places.  With ``max_staleness`` 0 the chunks of rollout k are exactly those of a
single process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from accord.config.rollout import TextRolloutEngine
from accord.distributed.ray.ledger import ChunkLine, Ledger
from accord.distributed.ray.pump import Pump, State
from accord.distributed.ray.weights import Publisher, digest, flat_weights
from accord.distributed.ray.worker import Sampled
from accord.rollout.chunks import Chunks, join, on_device, score_chunk, token_versions
from accord.runtime.device import autocast
from accord.types import Generation, Rollout


class RemoteRollouts:
    """The rollouts of a ``TextSource``, sampled by the workers of a pump; every one is written to the ledger."""

    def __init__(self, chunks: Chunks, pump: Pump, ledger: Ledger, settings: TextRolloutEngine) -> None:
        self._chunks, self._pump, self._ledger, self._settings = chunks, pump, ledger, settings
        self._publisher = Publisher(settings.transfer)
        self._next = 0  # the first chunk that has never been allowed
        self._open: list[int] = []  # allowed, and neither trained on nor dropped
        self._dropped = 0
        self._resumed = False
        self._ended = 0.0  # when the last rollout was handed over; 0: none was

    def collect(self, iteration: int, policy: nn.Module) -> tuple[Rollout, dict[str, float]]:
        """The rollout of an iteration, sampled from ``policy`` or older weights, and metrics of how it came."""
        started = time.perf_counter()
        exact = flat_weights(policy, "float32")
        dtype = self._settings.weights_dtype
        flat = exact if dtype == "float32" else flat_weights(policy, dtype)
        published, size = self._publisher.publish(iteration, flat)
        self._pump.publish(published)
        publish_seconds = time.perf_counter() - started
        if self._resumed:  # what was under way when the state was saved is sampled by newer weights
            self._pump.allow(self._open)
            self._resumed = False
        self._allow(iteration)
        dropped: list[int] = []
        while True:
            state = self._pump.wait_for(
                lambda state: bool(self._choose(iteration, state) or self._late(iteration, state))
            )
            if late := self._late(iteration, state):
                self._pump.take(late)
                dropped += late
                self._close(late)
                self._dropped += len(late)
                self._allow(iteration)
                continue
            chosen = self._choose(iteration, state)
            break
        sampled = self._pump.take(chosen)
        self._close(chosen)
        waited = time.perf_counter() - started - publish_seconds
        self._ledger.write(self._line(iteration, digest(exact), sampled, dropped))
        metrics = {
            "wait_seconds": waited,
            "update_seconds": started - self._ended if self._ended else 0.0,  # between the last rollout and this one
            "publish_seconds": publish_seconds,
            "published_mb": size / 1e6,
            "received_mb": sum(_size(part) for part in sampled) / 1e6,
            "worker_seconds": sum(part.seconds for part in sampled),
            "chunks_waiting": float(len(state.arrived) - len(sampled)),
            "dropped": float(self._dropped),
        }
        rollout = self._rollout(sorted(sampled, key=lambda part: part.number))
        self._ended = time.perf_counter()
        return rollout, metrics

    def finish(self, policy: nn.Module) -> None:
        """Writes the digest of the final weights."""
        self._ledger.write({"end": digest(flat_weights(policy, "float32"))})

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "open": list(self._open), "dropped": self._dropped, "ledger": self._ledger.lines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the rollouts that the state knows of.  Raises UserError where the ledger has fewer."""
        self._next, self._open, self._dropped = int(state["next"]), list(state["open"]), int(state["dropped"])
        self._ledger.resume(int(state["ledger"]))
        self._resumed = True

    # --------------------------------------------------------------------------------- which chunks
    def _allow(self, iteration: int) -> None:
        """Allows as many chunks as may be under way at this rollout."""
        bound = (iteration + self._settings.max_staleness + 1) * self._chunks.per_rollout + self._dropped
        new = list(range(self._next, bound))
        self._next = max(self._next, bound)
        self._open += new
        self._pump.allow(new)

    def _close(self, numbers: Sequence[int]) -> None:
        self._open = [number for number in self._open if number not in numbers]

    def _late(self, iteration: int, state: State) -> list[int]:
        """Chunks that have arrived and are older than ``max_staleness`` rollouts."""
        oldest = iteration - self._settings.max_staleness
        return [sampled.number for sampled in state.arrived if sampled.version < oldest]

    def _choose(self, iteration: int, state: State) -> list[int]:
        """The chunks of this rollout, those that it must take first; empty while some are missing.

        With ``wait`` it leaves no more chunks of any version, or of older ones, than later rollouts can take in time.
        """
        size, first = self._chunks.per_rollout, list[int]()
        if self._settings.overflow == "wait":
            for version in sorted({*state.sampling.values(), *(sampled.version for sampled in state.arrived)}):
                under_way = sum(other <= version for other in state.sampling.values())
                there = [sampled.number for sampled in state.arrived if sampled.version <= version]
                later = max(0, version + self._settings.max_staleness - iteration) * size
                due = len(there) + under_way - later
                if due > len(there):
                    return []
                first += [number for number in there if number not in first][: max(0, due - len(first))]
        chosen = [*first, *(sampled.number for sampled in state.arrived if sampled.number not in first)][:size]
        return chosen if len(chosen) == size else []

    # --------------------------------------------------------------------------------- what comes of them
    def _line(self, iteration: int, weights: str, sampled: Sequence[Sampled], dropped: Sequence[int]) -> dict[str, Any]:
        lines = [
            ChunkLine(
                chunk=part.number,
                prompts=list(self._chunks[part.number].rows),
                version=part.version,
                swaps=[list(swap) for swap in part.swaps],
                worker=part.worker,
            )
            for part in sampled
        ]
        return {"rollout": iteration, "weights": weights, "chunks": lines, "dropped": list(dropped)}

    def _rollout(self, sampled: Sequence[Sampled]) -> Rollout:
        source = self._chunks.source
        parts = []
        with autocast(source.device, source.precision):
            for part in sampled:
                content = part.content
                if isinstance(content, Generation):
                    content = content.to(source.device)
                    versions = token_versions(content, part.version, part.swaps)
                    content = score_chunk(source.task, self._chunks[part.number], content, versions)
                parts.append(on_device(content, source.device))
        return join(parts, source.task.decoding.pad_id)


def _size(sampled: Sampled) -> int:
    """Bytes of the tensors that came with a chunk."""
    content = sampled.content
    generation = content if isinstance(content, Generation) else content.generation
    tensors = [generation.responses, generation.mask, generation.logprobs, generation.ended]
    if isinstance(content, Rollout):
        tensors += [content.weight_versions, content.ref_logprobs, content.scores, *content.terms.values()]
    return sum(x.nbytes for x in tensors)
