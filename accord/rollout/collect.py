"""From prompts to scored replies, for any algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.data.packing import pack_continuations
from accord.data.prompts import PromptData
from accord.data.reply_text import reply_text
from accord.data.tokenizer import Tokenizer
from accord.models.backbone import Backbone
from accord.models.reference import Reference
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import Replies, Reward, total
from accord.types import Generation, Packed, Rollout


@dataclass(frozen=True, slots=True)
class TextTask:
    """The prompts of a rollout, how replies to them are sampled, and how they are scored."""

    prompts: PromptData
    tokenizer: Tokenizer
    decoding: Decoding
    samples_per_prompt: int
    reward: Reward
    reference: Reference
    chunk: int  # replies in one forward pass of the reference


def pack_texts(prompts: Sequence[tuple[int, ...]], responses: Tensor, mask: Tensor) -> tuple[Packed, Tensor]:
    """B replies as one packed row, equal prompts once, and the indices (N,) of their tokens, reply after reply."""
    replies = [row[valid].tolist() for row, valid in zip(responses, mask, strict=True)]
    packed, segments = pack_continuations(prompts, replies)
    packed = packed.to(responses.device)
    return packed, packed.span(segments.to(responses.device))[0]


def to_rows(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) from the numbers (N,) of valid tokens, row after row; zeros elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def chunks(generation: Generation, size: int) -> Iterator[tuple[Packed, Tensor]]:
    """The replies as packed rows of ``size`` replies each, with the indices of the replies' tokens."""
    for rows in torch.split(torch.arange(len(generation.prompts)), size):
        prompts = [generation.prompts[int(r)] for r in rows]
        yield pack_texts(prompts, generation.responses[rows], generation.mask[rows])


@torch.no_grad()
def read_replies(generation: Generation, size: int, read: Callable[[Packed, Tensor], Tensor]) -> Tensor:
    """(B, T) float32: ``read(packed, at)`` of every reply's tokens, ``size`` replies at a time; 0 under the mask."""
    return to_rows(torch.cat([read(packed, at) for packed, at in chunks(generation, size)]).float(), generation.mask)


@torch.no_grad()
def collect(
    task: TextTask,
    sampler: Backbone,
    rows: Sequence[int],
    keys: Sequence[int],
    version: int = 0,
    readout: Callable[[Tensor], Tensor] | None = None,
) -> Rollout:
    """Replies of ``sampler`` to the task's prompts ``rows``, scored by the reward and the reference.

    ``keys`` hold the sampling noise of each reply (``reply_keys``).  ``version`` numbers the sampler's weights.
    ``readout`` maps the hidden states (B, D) from which tokens are sampled to numbers (B,) stored in the rollout: a
    value head on the sampler's trunk needs no pass of its own.
    """
    prompts = [task.prompts.prompts[row] for row in rows]
    generation, read = generate(sampler, prompts, task.decoding, keys, task.samples_per_prompt, readout)
    ref_logprobs = read_replies(generation, task.chunk, task.reference.logprobs)
    prompt_rows = torch.tensor(rows).repeat_interleave(task.samples_per_prompt)
    scores, terms = score(task, prompt_rows.tolist(), generation)
    versions = torch.full_like(generation.responses, version)
    read_or_none = None if readout is None else read
    return Rollout(generation, prompt_rows, versions, ref_logprobs, scores, terms, read_or_none)


def score(task: TextTask, prompt_rows: Sequence[int], generation: Generation) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,) the task's reward of replies to the prompts ``prompt_rows`` (B), and the terms that it is the sum of."""
    tokens = generation.reply_tokens()
    replies = Replies(
        [task.prompts.sources[row] for row in prompt_rows],
        [reply_text(task.tokenizer, p, reply) for p, reply in zip(generation.prompts, tokens, strict=True)],
        generation.prompts,
        tokens,
        generation.ended.tolist(),
    )
    terms = {name: scores.to(generation.mask.device) for name, scores in task.reward(replies).items()}
    return total(terms, replies.texts), terms
