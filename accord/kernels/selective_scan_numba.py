"""Mamba's kernels for a CPU: selective scan and causal convolution, forward, backward and one token at a time.

A vector has sixteen channels in its lanes: two AVX2 registers, or one of AVX-512.  Time is the outer loop, so
nothing is transposed.  The backward scan keeps the states at every ``CHUNK``-th token and computes the others again.
Channel blocks are dealt to threads in fixed groups and each group sums alone: the number of threads changes no bit.

Arrays are flat float32 views, rows of ``width`` channels; ``width`` is a multiple of ``LANES``.

Plain form: ``accord.functional.selective_scan.reference_scan``, compared in ``tests/kernels/test_selective_scan.py``; a
step is compared with the scan in ``tests/models/test_mamba.py``.
"""

from __future__ import annotations

import numpy as np

from accord.kernels.numba_vectors import (
    LANES,
    add,
    broadcast,
    compiled,
    exp2,
    fma,
    increase,
    load,
    mul,
    parallel_for,
    sigmoid,
    slope,
    softplus,
    store,
    zero,
)

__all__ = [
    "CHUNK",
    "GROUP",
    "LANES",
    "conv_backward",
    "conv_forward",
    "conv_step",
    "gate_backward",
    "gate_forward",
    "parallel_for",
    "scan_backward",
    "scan_forward",
    "scan_step",
    "softplus_backward",
    "softplus_forward",
]

CHUNK = 32  # tokens between two stored states
GROUP = 2  # blocks of one task: the unit in which gradients of B and C are summed


@compiled
def scan_forward(  # type: ignore[no-untyped-def]
    x, dt, a, b, c, d, offsets, parents, y, finals, marks, width, states, first, last
):
    """Blocks [first, last).  ``a`` (N, width) is A log2(e); ``finals`` (S, N, width).

    ``marks`` (blocks, marks, N, LANES) takes the states before each chunk; empty where no gradient will be asked.
    """
    h = np.empty(states * LANES, np.float32)
    keep = marks.size > 0
    total = 0
    for s in range(parents.size):
        total += (offsets[s + 1] - offsets[s] + CHUNK - 1) // CHUNK
    for block in range(first, last):
        column = block * LANES
        skip = load(d, column)
        mark = block * total * states * LANES
        for s in range(parents.size):
            for n in range(states):
                if parents[s] < 0:
                    store(h, n * LANES, zero())
                else:
                    store(h, n * LANES, load(finals, (parents[s] * states + n) * width + column))
            for t in range(offsets[s], offsets[s + 1]):
                if keep and (t - offsets[s]) % CHUNK == 0:
                    for n in range(states):
                        store(marks, mark, load(h, n * LANES))
                        mark += LANES
                value = load(x, t * width + column)
                time = load(dt, t * width + column)
                push = mul(value, time)
                out = mul(value, skip)
                for n in range(states):
                    decay = exp2(mul(time, load(a, n * width + column)))
                    state = fma(push, broadcast(b, t * states + n), mul(decay, load(h, n * LANES)))
                    store(h, n * LANES, state)
                    out = fma(state, broadcast(c, t * states + n), out)
                store(y, t * width + column, out)
            for n in range(states):
                store(finals, (s * states + n) * width + column, load(h, n * LANES))


@compiled
def _chunk_states(h, a, time, push, b, lo, size, states, n, decays, path):  # type: ignore[no-untyped-def]
    """One state of one block through a chunk: decays, and ``path`` from before the first token to after the last."""
    store(path, 0, h)
    for i in range(size):
        decay = exp2(mul(load(time, i * LANES), a))
        h = fma(load(push, i * LANES), broadcast(b, (lo + i) * states + n), mul(decay, h))
        store(decays, i * LANES, decay)
        store(path, (i + 1) * LANES, h)


@compiled
def scan_backward(  # type: ignore[no-untyped-def]
    x, dt, rate, a, b, c, d, offsets, parents, marks, gy, gh, gx, gdt, ga, gb, gc, gd, width, states, first, last
):
    """Groups [first, last).  ``rate`` is A and ``a`` A log2(e), both (N, width); ``gb`` and ``gc`` are (groups, L, N).

    ``ga``, ``gb`` and ``gc`` are added to and start at zero.
    ``gh`` (S, N, width) holds the gradients of the final states and takes in what children send to their parents.
    """
    length = gb.size // states // ((width // LANES + GROUP - 1) // GROUP)
    total = marks.size // (states * width)
    carry = np.empty(states * LANES, np.float32)
    path = np.empty((CHUNK + 1) * LANES, np.float32)
    local = np.empty((6, CHUNK * LANES), np.float32)
    decays, time, push, pull, through_b, through_a = local[0], local[1], local[2], local[3], local[4], local[5]
    for block in range(first * GROUP, min(last * GROUP, width // LANES)):
        column = block * LANES
        group = block // GROUP * length
        mark = (block + 1) * total * states * LANES
        skip, gskip = load(d, column), zero()
        for s in range(parents.size - 1, -1, -1):
            start, end = offsets[s], offsets[s + 1]
            for n in range(states):
                store(carry, n * LANES, load(gh, (s * states + n) * width + column))
            for k in range((end - start - 1) // CHUNK, -1, -1):
                lo = start + k * CHUNK
                size = min(CHUNK, end - lo)
                mark -= states * LANES
                for i in range(size):
                    value, row = load(x, (lo + i) * width + column), i * LANES
                    store(time, row, load(dt, (lo + i) * width + column))
                    store(pull, row, load(gy, (lo + i) * width + column))
                    store(push, row, mul(value, load(time, row)))
                    gskip = fma(value, load(pull, row), gskip)
                    store(through_b, row, zero())
                    store(through_a, row, zero())
                for n in range(states):
                    here = n * width + column
                    h = load(marks, mark + n * LANES)
                    _chunk_states(h, load(a, here), time, push, b, lo, size, states, n, decays, path)
                    g, pace, grate = load(carry, n * LANES), load(rate, here), load(ga, here)
                    for i in range(size - 1, -1, -1):
                        row, at = i * LANES, (lo + i) * states + n
                        increase(gc, group * states + at, mul(load(pull, row), load(path, row + LANES)))
                        g = fma(load(pull, row), broadcast(c, at), g)
                        increase(gb, group * states + at, mul(g, load(push, row)))
                        store(through_b, row, fma(g, broadcast(b, at), load(through_b, row)))
                        g = mul(g, load(decays, row))
                        bent = mul(g, load(path, row))  # the gradient of log(decay)
                        store(through_a, row, fma(bent, pace, load(through_a, row)))
                        grate = fma(bent, load(time, row), grate)
                    store(carry, n * LANES, g)
                    store(ga, here, grate)
                for i in range(size):
                    row, at = i * LANES, (lo + i) * width + column
                    pushed = load(through_b, row)
                    store(gx, at, fma(load(time, row), pushed, mul(load(pull, row), skip)))
                    store(gdt, at, fma(load(x, at), pushed, load(through_a, row)))
            if parents[s] >= 0:
                for n in range(states):
                    above = (parents[s] * states + n) * width + column
                    store(gh, above, add(load(gh, above), load(carry, n * LANES)))
        store(gd, column, gskip)


@compiled
def conv_forward(x, stride, weight, bias, previous, y, width, first, last):  # type: ignore[no-untyped-def]
    """SiLU of the causal convolution along ``previous``; ``x`` has rows of ``stride``, ``weight`` is (K, width)."""
    taps = weight.size // width
    back = np.empty(taps, np.int64)
    for t in range(previous.size):
        j = t
        for k in range(taps - 1, -1, -1):
            back[k] = j
            j = previous[j] if j >= 0 else -1
        for column in range(first * LANES, last * LANES, LANES):
            total = load(bias, column)
            for k in range(taps):
                if back[k] >= 0:
                    total = fma(load(x, back[k] * stride + column), load(weight, k * width + column), total)
            store(y, t * width + column, mul(total, sigmoid(total)))


@compiled
def conv_backward(  # type: ignore[no-untyped-def]
    x, stride, weight, bias, previous, gy, gx, gweight, gbias, width, first, last
):
    """Adds to ``gx`` (L, width), ``gweight`` (K, width) and ``gbias`` (width), which start at zero."""
    taps = weight.size // width
    back = np.empty(taps, np.int64)
    for t in range(previous.size):
        j = t
        for k in range(taps - 1, -1, -1):
            back[k] = j
            j = previous[j] if j >= 0 else -1
        for column in range(first * LANES, last * LANES, LANES):
            total = load(bias, column)
            for k in range(taps):
                if back[k] >= 0:
                    total = fma(load(x, back[k] * stride + column), load(weight, k * width + column), total)
            g = mul(load(gy, t * width + column), slope(total, sigmoid(total)))
            store(gbias, column, add(load(gbias, column), g))
            for k in range(taps):
                if back[k] >= 0:
                    row, tap = back[k] * width + column, k * width + column
                    store(gx, row, fma(g, load(weight, tap), load(gx, row)))
                    store(gweight, tap, fma(g, load(x, back[k] * stride + column), load(gweight, tap)))


@compiled
def conv_step(xz, window, weight, bias, y, width, first, last):  # type: ignore[no-untyped-def]
    """Rows [first, last) of the convolution at one new token; ``window`` (B, K-1, width) is updated in place."""
    taps = weight.size // width - 1
    for row in range(first, last):
        for column in range(0, width, LANES):
            new = load(xz, row * 2 * width + column)
            total = fma(new, load(weight, taps * width + column), load(bias, column))
            for k in range(taps):
                at = (row * taps + k) * width + column
                old = load(window, at)
                total = fma(old, load(weight, k * width + column), total)
                if k > 0:
                    store(window, at - width, old)
            if taps > 0:
                store(window, (row * taps + taps - 1) * width + column, new)
            store(y, row * width + column, mul(total, sigmoid(total)))


@compiled
def scan_step(  # type: ignore[no-untyped-def]
    x, dt, a, bc, d, xz, h, y, width, states, skip, first, last
):
    """Rows [first, last) of softplus(dt), scan and gate at one new token; ``h`` (B, N, width) is updated in place.

    ``bc`` has rows of ``skip`` numbers, then B, then C; ``xz`` has rows of the input, then the gate.
    """
    for row in range(first, last):
        at_b = row * (skip + 2 * states) + skip
        for column in range(0, width, LANES):
            value, time = load(x, row * width + column), softplus(load(dt, row * width + column))
            push, out = mul(value, time), mul(value, load(d, column))
            for n in range(states):
                at = (row * states + n) * width + column
                decay = exp2(mul(time, load(a, n * width + column)))
                state = fma(push, broadcast(bc, at_b + n), mul(decay, load(h, at)))
                store(h, at, state)
                out = fma(state, broadcast(bc, at_b + states + n), out)
            gate = load(xz, (row * 2 + 1) * width + column)
            store(y, row * width + column, mul(out, mul(gate, sigmoid(gate))))


@compiled
def softplus_forward(x, y, first, last):  # type: ignore[no-untyped-def]
    """Vectors [first, last) of all numbers."""
    for i in range(first * LANES, last * LANES, LANES):
        store(y, i, softplus(load(x, i)))


@compiled
def softplus_backward(x, gy, gx, first, last):  # type: ignore[no-untyped-def]
    for i in range(first * LANES, last * LANES, LANES):
        store(gx, i, mul(load(gy, i), sigmoid(load(x, i))))


@compiled
def gate_forward(y, z, stride, out, width, first, last):  # type: ignore[no-untyped-def]
    """Rows [first, last) of y SiLU(z); ``z`` has rows of ``stride``."""
    for row in range(first, last):
        for column in range(0, width, LANES):
            gate = load(z, row * stride + column)
            store(out, row * width + column, mul(load(y, row * width + column), mul(gate, sigmoid(gate))))


@compiled
def gate_backward(y, z, stride, g, gy, gz, width, first, last):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        for column in range(0, width, LANES):
            at = row * width + column
            gate, pull = load(z, row * stride + column), load(g, at)
            opening = sigmoid(gate)
            store(gy, at, mul(pull, mul(gate, opening)))
            store(gz, at, mul(mul(pull, load(y, at)), slope(gate, opening)))
