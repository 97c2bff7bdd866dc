"""Rollouts in chunks: prompts whose replies are sampled together, numbered in the order of the prompts.

A chunk is sampled by one process in one batch.  Which process that is changes nothing, as long as it has as many threads;
how the prompts are cut into chunks changes rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accord.rollout.collect import TextTask, read_replies, score
from accord.rollout.generate import Sampler, generate
from accord.rollout.noise import reply_keys
from accord.rollout.text_source import TextSource
from accord.runtime.device import autocast
from accord.types import Generation, Rollout


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some prompts of a rollout, and the sampling noise of the replies to them."""

    number: int  # counted over all rollouts
    rows: tuple[int, ...]  # of the prompts in their file
    keys: tuple[int, ...]  # of the replies, prompt after prompt


@dataclass(slots=True)
class Chunks:
    """The chunks of a source's rollouts, ``size`` prompts each, which divides the prompts of a rollout."""

    source: TextSource
    size: int
    _drawn: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)

    @property
    def per_rollout(self) -> int:
        """The number of chunks of a rollout."""
        return self.source.prompts_per_rollout // self.size

    @property
    def replies_per_rollout(self) -> int:
        """The number of replies of a rollout."""
        return self.source.prompts_per_rollout * self.source.task.samples_per_prompt

    def __getitem__(self, number: int) -> Chunk:
        """Chunk ``number``, a function of the seed and the number alone."""
        iteration, part = divmod(number, self.per_rollout)
        rows, keys = self._drawn.get(iteration) or self._draw(iteration)
        samples, first = self.source.task.samples_per_prompt, part * self.size
        last = first + self.size
        return Chunk(number, tuple(rows[first:last]), tuple(keys[first * samples : last * samples]))

    def _draw(self, iteration: int) -> tuple[list[int], list[int]]:
        """The prompts and keys of an iteration's rollout; only those of one are stored."""
        rows = self.source.prompt_rows(iteration)
        keys = reply_keys(self.source.run.seed, "sampling", iteration, rows, self.source.task.samples_per_prompt)
        self._drawn = {iteration: (rows, keys)}
        return rows, keys


def sample_chunk(task: TextTask, sampler: Sampler, chunk: Chunk, job_rows: int) -> Generation:
    """The replies to a chunk's prompts; ``job_rows``: replies of the whole rollout."""
    prompts = [task.prompts.prompts[row] for row in chunk.rows]
    return generate(sampler, prompts, task.decoding, chunk.keys, task.samples_per_prompt, job_rows=job_rows)[0]


def score_chunk(task: TextTask, chunk: Chunk, generation: Generation, versions: Tensor) -> Rollout:
    """The replies to a chunk's prompts, scored and read by the reference; ``versions`` (B, T) of the weights."""
    prompt_rows = torch.tensor(chunk.rows).repeat_interleave(task.samples_per_prompt)
    ref_logprobs = read_replies(generation, task.chunk, task.reference.logprobs)
    scores, terms = score(task, prompt_rows.tolist(), generation)
    return Rollout(generation, prompt_rows, versions, ref_logprobs, scores, terms)


def token_versions(generation: Generation, version: int, swaps: Sequence[tuple[int, int]] = ()) -> Tensor:
    """(B, T): ``version``, and from position t on the versions of ``swaps`` [(t, version) …]."""
    versions = torch.full_like(generation.responses, version)
    for position, newer in swaps:
        versions[:, position:] = newer
    return versions


def join(parts: Sequence[Rollout], pad_id: int) -> Rollout:
    """One rollout of the replies of all parts, in their order; shorter ones are padded."""
    steps = max(part.generation.mask.shape[1] for part in parts)

    def rows(name: str, of: str = "", fill: int = 0) -> Tensor:
        columns = [getattr(getattr(part, of) if of else part, name) for part in parts]
        if columns[0].dim() > 1:
            columns = [torch.nn.functional.pad(x, (0, steps - x.shape[1]), value=fill) for x in columns]
        return torch.cat(columns)

    generation = Generation(
        tuple(prompt for part in parts for prompt in part.generation.prompts),
        rows("responses", "generation", pad_id),
        rows("mask", "generation"),
        rows("logprobs", "generation"),
        rows("ended", "generation"),
    )
    terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
    versions, ref_logprobs = rows("weight_versions"), rows("ref_logprobs")
    return Rollout(generation, rows("prompt_rows"), versions, ref_logprobs, rows("scores"), terms)


def on_device(rollout: Rollout, device: torch.device) -> Rollout:
    """The rollout with all its tensors on a device."""
    return Rollout(
        rollout.generation.to(device),
        rollout.prompt_rows,
        rollout.weight_versions.to(device),
        rollout.ref_logprobs.to(device),
        rollout.scores.to(device),
        {name: scores.to(device) for name, scores in rollout.terms.items()},
    )


@dataclass(frozen=True, slots=True)
class ChunkedTextSource:
    """The rollouts of a ``TextSource``, sampled and scored chunk after chunk by this process: less memory at a time."""

    source: TextSource
    chunks: Chunks

    def collect(self, iteration: int) -> Rollout:
        """The rollout of an iteration."""
        source, count = self.source, self.chunks.per_rollout
        parts = []
        with autocast(source.device, source.precision):
            sampler = source.sampler()
            for number in range(iteration * count, (iteration + 1) * count):
                chunk = self.chunks[number]
                generation = sample_chunk(source.task, sampler, chunk, self.chunks.replies_per_rollout)
                parts.append(score_chunk(source.task, chunk, generation, token_versions(generation, iteration)))
        return join(parts, source.task.decoding.pad_id)

    def state_dict(self) -> dict[str, Any]:
        """Empty, as the source's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
