"""Repeats a run from its ledger on one process: the same replies from the same weights, and in the end the same weights.

Bit for bit where one process computes what workers and learner computed: on CPUs of one kind, with as many threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from accord.config.rollout import TextRolloutEngine
from accord.distributed.ray.ledger import ChunkLine, Header, RolloutLine, read_ledger, require_same_run, versions_needed
from accord.distributed.ray.weights import Flat, digest, flat_weights, load_flat
from accord.distributed.ray.worker import WatchedSteps
from accord.errors import Failed, UserError
from accord.models.backbone import Backbone
from accord.models.quantized import sampling_model
from accord.rollout.chunks import Chunks, join, sample_chunk, score_chunk, token_versions
from accord.rollout.generate import Sampler
from accord.runtime.device import autocast
from accord.types import Rollout

Copies = Literal["float32", "bfloat16", "int8"]
"""The setting ``sampling.weights``."""


class ReplayedRollouts:
    """The rollouts that a ledger names, sampled by this process; older weights are stored as long as they are needed."""

    def __init__(
        self, path: Path, mine: Header, chunks: Chunks, policy: Backbone, settings: TextRolloutEngine, copies: Copies
    ) -> None:
        self._path, self._chunks, self._policy, self._settings, self._copies = path, chunks, policy, settings, copies
        self._header, self._lines, self._end = read_ledger(path)
        require_same_run(path, self._header, mine)
        self._require_chunks()
        self._sampler = deepcopy(policy).requires_grad_(False)
        self._versions: dict[int, Flat] = {}
        self.threads = self._header["threads"]
        """Those of the run's learner."""

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration.  Raises Failed where this process's weights are not those of the run."""
        line = self._line(iteration)
        self._compare(line["weights"], f"when rollout {iteration} began")
        self._versions[iteration] = flat_weights(self._policy, self._settings.weights_dtype)
        source = self._chunks.source
        with autocast(source.device, source.precision):
            parts = [self._chunk(chunk) for chunk in sorted(line["chunks"], key=lambda chunk: chunk["chunk"])]
        needed = versions_needed(self._lines, iteration + 1)
        self._versions = {version: flat for version, flat in self._versions.items() if version in needed}
        return join(parts, source.task.decoding.pad_id)

    def finish(self) -> None:
        """Raises Failed where the final weights are not those of the run."""
        if self._end:
            self._compare(self._end, "at the end")

    def state_dict(self) -> dict[str, Any]:
        """The older weights that are still needed, as signed numbers of the same bits."""
        signed = {2: np.int16, 4: np.int32}
        return {
            "versions": {
                str(version): torch.from_numpy(flat.view(signed[flat.itemsize]))
                for version, flat in self._versions.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        unsigned = {2: np.uint16, 4: np.uint32}
        arrays = {int(version): numbers.numpy() for version, numbers in state["versions"].items()}
        self._versions = {version: array.view(unsigned[array.itemsize]) for version, array in arrays.items()}

    # --------------------------------------------------------------------------------- one chunk
    def _chunk(self, line: ChunkLine) -> Rollout:
        task, chunk, settings = self._chunks.source.task, self._chunks[line["chunk"]], self._settings
        load_flat(self._sampler, self._versions[line["version"]])
        swaps: dict[int, int] = dict(line["swaps"])  # type: ignore[arg-type]

        def swap(position: int) -> None:
            if position in swaps:
                load_flat(self._sampler, self._versions[swaps[position]])

        sampler: Sampler = sampling_model(self._sampler, self._copies)
        if swaps:
            sampler = WatchedSteps(self._sampler, swap)
        with threads(self._header["worker_threads"]):
            generation = sample_chunk(task, sampler, chunk, self._chunks.replies_per_rollout)
            versions = token_versions(generation, line["version"], list(swaps.items()))
            if settings.score == "workers":
                return score_chunk(task, chunk, generation, versions)
        return score_chunk(task, chunk, generation, versions)

    # --------------------------------------------------------------------------------- checks
    def _line(self, iteration: int) -> RolloutLine:
        if iteration >= len(self._lines):
            raise UserError(
                f"{self._path}: ends after rollout {len(self._lines) - 1}, before the run did; finish that run with --resume and"
                " replay it then."
            )
        return self._lines[iteration]

    def _require_chunks(self) -> None:
        """Raises UserError for a chunk with other prompts than this run's, or of weights that were not published yet."""
        count = self._chunks.per_rollout
        for number, line in enumerate(self._lines):
            where = f"{self._path}, line {number + 2}"
            if len(line["chunks"]) != count:
                raise UserError(f"{where}: {len(line['chunks'])} chunks, and a rollout of this run has {count}.")
            for chunk in line["chunks"]:
                versions = [chunk["version"], *(swap[1] for swap in chunk["swaps"] if len(swap) == 2)]
                if any(len(swap) != 2 for swap in chunk["swaps"]) or max(versions) > number:
                    raise UserError(
                        f"{where}: chunk {chunk['chunk']} names weights that did not exist; the file is damaged."
                    )
                if tuple(chunk["prompts"]) != self._chunks[chunk["chunk"]].rows:
                    raise UserError(
                        f"{where}: chunk {chunk['chunk']} has other prompts than in this run; the file is damaged."
                    )

    def _compare(self, recorded: str, when: str) -> None:
        if digest(flat_weights(self._policy, "float32")) != recorded and self._header["device"] == "cpu":
            raise Failed(
                f"{self._path}: the weights {when} are not those of the run, so this process computes other numbers: replay on"
                " the same kind of CPU, with the same versions of torch and accord."
            )


@contextmanager
def threads(number: int) -> Iterator[None]:
    """torch on so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
