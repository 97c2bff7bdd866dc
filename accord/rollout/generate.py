"""Samples replies: each prompt is read once, then one token per step; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accord.models.backbone import Backbone
from accord.rollout.noise import uniforms
from accord.types import Generation, Packed

MIN_WORK_FOR_JIT = 2**22  # logits of a whole job; smaller ones do not recover the time of loading the compiled draw


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a token is drawn.  ``temperature`` 0 takes the likeliest.  ``top_p`` < 1 is for chat, never for training."""

    max_new_tokens: int
    eos_id: int
    pad_id: int
    temperature: float = 1.0
    top_p: float = 1.0


class Sampler(Protocol):
    """What generation needs of a ``Backbone``."""

    vocab_size: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, Any]: ...

    def policy_logits(self, hidden: Tensor) -> Tensor: ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor: ...


Draw = Callable[[Tensor, Decoding, Tensor], tuple[Tensor, Tensor]]


def draw(logits: Tensor, decoding: Decoding, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B,) from logits (B, V), and their log-probs (B,) under the distribution they were drawn from.

    ``uniform`` (B,) in [0, 1): one number per row, at which the cumulative distribution is inverted.
    """
    if decoding.temperature == 0:
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.argmax(-1)
        return best, logprobs.gather(-1, best[:, None]).squeeze(-1)
    logprobs = (logits.float() / decoding.temperature).log_softmax(-1)
    if decoding.top_p < 1.0:
        logprobs = _keep_nucleus(logprobs, decoding.top_p)
    cumulative = logprobs.exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def draw_compiled(logits: Tensor, decoding: Decoding, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """``draw`` on a CPU without top-p, in two passes over each row; a token differs only where rounding moves a boundary."""
    from accord.kernels import decoding_numba as kernels

    rows = len(logits)
    greedy = decoding.temperature == 0
    tokens, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    arrays = (logits.detach().float().contiguous().numpy(), uniform.contiguous().numpy())
    settings = (1.0 if greedy else 1.0 / decoding.temperature, greedy)
    results = (tokens.numpy(), logprobs.numpy())
    kernels.parallel_for(kernels.sample, *arrays, *settings, *results, count=rows, work=logits.numel())
    return tokens, logprobs


def _draw_for(decoding: Decoding, device: torch.device, logits: int) -> Draw:
    """The draw for a job of so many ``logits``; it depends on the job alone, so that a resumed run draws the same."""
    compiled = (
        device.type == "cpu" and decoding.top_p >= 1.0 and logits >= MIN_WORK_FOR_JIT and find_spec("numba") is not None
    )
    return draw_compiled if compiled else draw


def _keep_nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    ordered, order = logprobs.sort(dim=-1, descending=True)
    beyond = ordered.exp().cumsum(-1) - ordered.exp() >= top_p
    nucleus = torch.zeros_like(beyond).scatter(-1, order, ~beyond)
    return logprobs.masked_fill(~nucleus, float("-inf")).log_softmax(-1)


@torch.no_grad()
def generate(
    backbone: Sampler,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    keys: Sequence[int],
    samples: int = 1,
    value: Callable[[Tensor], Tensor] | None = None,
    job_rows: int = 0,
) -> tuple[Generation, Tensor]:
    """``samples`` replies to each prompt (row b answers prompt b // samples), and their values (B, T).

    ``keys`` (B) hold the sampling noise of the replies (``reply_keys``): a reply is a function of its prompt, its key
    and the weights, up to rounding.  A prompt is read once for all its samples.  ``value`` maps hidden states (B, D)
    to values (B,) of the state before each token; without it the values are zeros.  EOS is an action with a log-prob;
    after it the mask is false.  ``job_rows``: replies of the job that these are a part of; 0: these are all.
    """
    device = next(backbone.parameters()).device
    rows, steps = len(prompts) * samples, decoding.max_new_tokens
    if len(keys) != rows:
        raise ValueError(f"{len(keys)} keys for {rows} replies")
    noise = uniforms(keys, steps).to(device)
    responses = torch.full((rows, steps), decoding.pad_id, device=device)
    logprobs = torch.zeros(rows, steps, device=device)
    values = torch.zeros(rows, steps, device=device)
    mask = torch.zeros(rows, steps, dtype=torch.bool, device=device)
    hidden, cache = backbone.prefill(Packed.of(prompts).to(device), steps)
    live = torch.arange(rows, device=device)  # the output rows of the cache's rows
    if samples > 1:
        hidden, cache = hidden[live // samples], cache.select(live // samples)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    pick = _draw_for(decoding, device, (job_rows or rows) * steps * backbone.vocab_size)
    for t in range(steps):
        tokens, token_logprobs = pick(backbone.policy_logits(hidden), decoding, noise[live, t])
        going = ~finished
        open_rows = live[going]
        responses[open_rows, t] = tokens[going]
        logprobs[open_rows, t] = token_logprobs[going]
        mask[open_rows, t] = True
        if value is not None:
            values[open_rows, t] = value(hidden[going]).float()
        finished = finished | (tokens == decoding.eos_id)
        remaining = int((~finished).sum())
        if remaining == 0 or t == steps - 1:
            break
        if remaining <= 0.8 * len(live):  # copying the cache takes time: only when a fifth of the rows are finished
            rest = (~finished).nonzero().squeeze(-1)
            live, cache, tokens, finished = live[rest], cache.select(rest), tokens[rest], finished[rest]
        hidden = backbone.step(tokens, cache)
    ended = (responses == decoding.eos_id).logical_and(mask).any(1)
    width = int(mask.sum(1).max())
    repeated = tuple(tuple(p) for p in prompts for _ in range(samples))
    generation = Generation(repeated, responses[:, :width], mask[:, :width], logprobs[:, :width], ended)
    return generation, values[:, :width]


@torch.no_grad()
def stream(backbone: Backbone, prompt: Sequence[int], decoding: Decoding, key: int) -> Iterator[int]:
    """The tokens of one reply as they are sampled, without the final EOS: those of ``generate`` with the same key."""
    device = next(backbone.parameters()).device
    hidden, cache = backbone.prefill(Packed.of([prompt]).to(device), decoding.max_new_tokens)
    pick = _draw_for(decoding, device, decoding.max_new_tokens * backbone.vocab_size)
    noise = uniforms([key], decoding.max_new_tokens).to(device)
    for t in range(decoding.max_new_tokens):
        tokens, _ = pick(backbone.policy_logits(hidden), decoding, noise[:, t])
        if int(tokens) == decoding.eos_id:
            return
        yield int(tokens)
        hidden = backbone.step(tokens, cache)
