"""The selective scan on a CUDA device: Triton kernels, forward and backward, in float32.

A program has one segment and ``BLOCK`` channels with all their states, and goes through time in chunks of ``CHUNK`` tokens,
each by an associative scan: (a, b) then (a', b') is (a a', a' b + b').  The forward pass stores the state before
each chunk and the backward pass computes the others again, as Mamba's own kernels do (arXiv 2312.00752, section 3.3.2).
Segments of one depth of the prefix tree run side by side.  No atomic additions: the same input gives the same bits.

Importing this needs triton, which CUDA builds of torch include.

Plain form: ``accord.functional.selective_scan.reference_scan``, compared in
``tests/kernels/test_selective_scan_triton.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16  # tokens between two stored states
BLOCK = 8  # channels of a program, the unit in which gradients of B and C are summed


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _then(a, b, next_a, next_b):  # type: ignore[no-untyped-def]
    return a * next_a, next_a * b + next_b


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _forward(  # type: ignore[no-untyped-def]
    x, dt, a, b, c, d, offsets, parents, segments, places, y, finals, marks, width, states,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """``a`` (width, states) is A log2(e); ``segments`` are those of this depth, ``places`` (S,) their first mark.

    ``finals`` (S, width, states) holds the parents' already; ``marks`` takes the states before each chunk.
    """
    segment = tl.load(segments + tl.program_id(0))
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state, step = tl.arange(0, STATES), tl.arange(0, CHUNK)
    start, end = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    parent, mark = tl.load(parents + segment), tl.load(places + segment)
    here, inside = channel[:, None] * states + state[None, :], (channel[:, None] < width) & (state[None, :] < states)
    rate, skip = tl.load(a + here, mask=inside, other=0.0), tl.load(d + channel, mask=channel < width, other=0.0)
    h = tl.load(finals + tl.maximum(parent, 0) * width * states + here, mask=inside, other=0.0)
    h = tl.where(parent >= 0, h, 0.0)
    for low in range(start, end, CHUNK):
        if KEEP:
            tl.store(marks + mark * width * states + here, h, mask=inside)
            mark += 1
        token = low + step
        at, taken = token[:, None] * width + channel[None, :], (token[:, None] < end) & (channel[None, :] < width)
        by_state, shown = token[:, None] * states + state[None, :], (token[:, None] < end) & (state[None, :] < states)
        value, time = tl.load(x + at, mask=taken, other=0.0), tl.load(dt + at, mask=taken, other=0.0)
        push = (value * time)[:, :, None] * tl.load(b + by_state, mask=shown, other=0.0)[:, None, :]
        decay = tl.exp2(time[:, :, None] * rate[None, :, :])  # 1 after the segment's end: the state stays
        reach, path = tl.associative_scan((decay, push), 0, _then)
        path += reach * h[None, :, :]
        out = tl.sum(path * tl.load(c + by_state, mask=shown, other=0.0)[:, None, :], 2) + skip[None, :] * value
        tl.store(y + at, out, mask=taken)
        h = tl.sum(tl.where((step == CHUNK - 1)[:, None, None], path, 0.0), 0)
    tl.store(finals + segment * width * states + here, h, mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _backward(  # type: ignore[no-untyped-def]
    x, dt, a, b, c, d, offsets, segments, places, marks, gy, gh, gx, gdt, ga, gb, gc, width, states, length,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """``gh`` (S, width, states) holds the gradients of the final states and takes those of the first ones.

    ``ga`` (S, width, states) is by segment, ``gb`` and ``gc`` (blocks, L, states) are by block of channels.
    """
    segment = tl.load(segments + tl.program_id(0))
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state, step = tl.arange(0, STATES), tl.arange(0, CHUNK)
    start, end = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    here, inside = channel[:, None] * states + state[None, :], (channel[:, None] < width) & (state[None, :] < states)
    rate, skip = tl.load(a + here, mask=inside, other=0.0), tl.load(d + channel, mask=channel < width, other=0.0)
    whole = segment * width * states + here
    carry = tl.load(gh + whole, mask=inside, other=0.0)
    grate = tl.zeros((BLOCK, STATES), tl.float32)
    chunks = (end - start + CHUNK - 1) // CHUNK
    partial = tl.program_id(1).to(tl.int64) * length * states
    for back in range(0, chunks):
        index = chunks - 1 - back
        h = tl.load(marks + (tl.load(places + segment) + index) * width * states + here, mask=inside, other=0.0)
        token = start + index * CHUNK + step
        at, taken = token[:, None] * width + channel[None, :], (token[:, None] < end) & (channel[None, :] < width)
        by_state, shown = token[:, None] * states + state[None, :], (token[:, None] < end) & (state[None, :] < states)
        follows = taken & (step[:, None] < CHUNK - 1) & (token[:, None] + 1 < end)  # the next token is in this chunk
        value, time = tl.load(x + at, mask=taken, other=0.0), tl.load(dt + at, mask=taken, other=0.0)
        pull = tl.load(gy + at, mask=taken, other=0.0)
        seen = tl.load(b + by_state, mask=shown, other=0.0)[:, None, :]
        read = tl.load(c + by_state, mask=shown, other=0.0)[:, None, :]
        push, decay = (value * time)[:, :, None] * seen, tl.exp2(time[:, :, None] * rate[None, :, :])
        reach, path = tl.associative_scan((decay, push), 0, _then)
        path += reach * h[None, :, :]
        later = tl.exp2(tl.load(dt + at + width, mask=follows, other=0.0)[:, :, None] * rate[None, :, :])
        reach, g = tl.associative_scan((later, pull[:, :, None] * read), 0, _then, reverse=True)
        g += reach * carry[None, :, :]
        through_b = tl.sum(g * seen, 2)
        bent = g * (path - push)  # the gradient of log(decay)
        slope = tl.sum(bent * rate[None, :, :], 2) * 0.6931471805599453
        tl.store(gx + at, time * through_b + pull * skip[None, :], mask=taken)
        tl.store(gdt + at, value * through_b + slope, mask=taken)
        tl.store(gb + partial + by_state, tl.sum(g * (value * time)[:, :, None], 1), mask=shown)
        tl.store(gc + partial + by_state, tl.sum(path * pull[:, :, None], 1), mask=shown)
        grate += tl.sum(bent * time[:, :, None], 0)
        carry = tl.sum(tl.where((step == 0)[:, None, None], g * decay, 0.0), 0)
    tl.store(gh + whole, carry, mask=inside)
    tl.store(ga + whole, grate, mask=inside)


def _levels(parents: Tensor) -> list[Tensor]:
    """The segments of each depth of the prefix tree, roots first."""
    depths: list[int] = []
    for parent in parents.tolist():
        depths.append(0 if parent < 0 else depths[parent] + 1)
    deep = torch.tensor(depths, device=parents.device)
    return [(deep == depth).nonzero()[:, 0] for depth in range(max(depths) + 1)]


def _sizes(states: int) -> dict[str, Any]:
    return {"CHUNK": CHUNK, "BLOCK": BLOCK, "STATES": triton.next_power_of_2(states), "num_warps": 4}


class TritonScan(torch.autograd.Function):
    """The kernels as one differentiable function: y (L, E) and final states (S, E, N).

    Inputs as in ``selective_scan``, all float32, contiguous and on one device; ``keep``: a gradient will be asked.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        offsets: Tensor,
        parents: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        (length, width), states, levels = x.shape, A.shape[1], _levels(parents)
        a = A / math.log(2)
        chunks = (offsets.diff() + CHUNK - 1) // CHUNK
        places = chunks.cumsum(0) - chunks
        y, finals = torch.empty_like(x), x.new_empty(len(parents), width, states)
        marks = x.new_empty(length // CHUNK + len(parents) if keep else 0, width, states)  # never fewer than chunks
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            for segments in levels:
                _forward[(len(segments), triton.cdiv(width, BLOCK))](
                    x, dt, a, B, C, D, offsets, parents, segments, places, y, finals, marks, width, states,
                    KEEP=keep, **_sizes(states),
                )  # fmt: skip
        ctx.save_for_backward(x, dt, a, B, C, D, offsets, parents, places, marks, *levels)
        ctx.set_materialize_grads(False)
        return y, finals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, gfinals: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, a, B, C, D, offsets, parents, places, marks, *levels = ctx.saved_tensors
        (length, width), states = x.shape, a.shape[1]
        blocks = triton.cdiv(width, BLOCK)
        gy = torch.zeros_like(x) if gy is None else gy.contiguous()
        gh = x.new_zeros(len(parents), width, states)  # the kernel writes to it
        if gfinals is not None:
            gh += gfinals
        gx, gdt, ga = torch.empty_like(x), torch.empty_like(x), torch.empty_like(gh)
        gb, gc = (x.new_empty(blocks, length, states) for _ in range(2))
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            for depth, segments in reversed(list(enumerate(levels))):
                _backward[(len(segments), blocks)](
                    x, dt, a, B, C, D, offsets, segments, places, marks, gy, gh, gx, gdt, ga, gb, gc, width, states,
                    length, **_sizes(states),
                )  # fmt: skip
                if depth:  # the gradient of a prompt's state from all that continue it
                    gh.index_put_((parents[segments],), gh[segments], accumulate=True)
        return gx, gdt, ga.sum(0), gb.sum(0), gc.sum(0), (gy * x).sum(0), None, None, None
