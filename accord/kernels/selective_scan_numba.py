"""Mamba's kernels for a CPU: selective scan and causal convolution, forward, backward and one token at a time.

A vector has sixteen channels in its lanes: two AVX2 registers, or one of AVX-512.  Time is the outer loop, so
nothing is transposed.  The backward scan keeps the states at every ``CHUNK``-th token and computes the others again.
Channel blocks are dealt to threads in fixed groups and each group sums alone: the number of threads changes no bit.

Arrays are flat float32 views, rows of ``width`` channels; ``width`` is a multiple of ``LANES``.

Plain form: ``accord.functional.selective_scan.reference_scan``, compared in ``tests/kernels/test_selective_scan.py``; a
step is compared with the scan in ``tests/models/test_mamba.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
CHUNK = 32  # tokens between two stored states
GROUP = 2  # blocks of one task: the unit in which gradients of B and C are summed

Function = Callable[..., Any]


def compiled(kernel: Function) -> Function:
    """Compiled at the first call, without the interpreter's lock; cached on disk where a folder is writable."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("Function", numba.njit(kernel, cache=True, **options))
    except RuntimeError:  # no folder for the cache: compile in every process
        return cast("Function", numba.njit(kernel, **options))


def instruction(build: Function) -> Function:
    """A function that kernels call, given by a builder that writes its LLVM code in place of the call."""
    return cast("Function", intrinsic(build))


# ------------------------------------------------------------------------------------------- vectors
class Lanes(types.Type):
    """Sixteen float32 in a vector register."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INTEGERS = ir.VectorType(ir.IntType(32), LANES)
# 2**r on [-1/2, 1/2], degree 6, exact at 0: least relative error (2e-9, under an ulp in float32), by Lawson's iteration
EXP2 = (1.0, 0.6931472028550951, 0.24022647913627668, 0.055503324710419744,
        0.009618437357621377, 0.001339887445250168, 0.0001535336200415311)  # fmt: skip
ROUND = float(1.5 * 2**23 + 127)  # adding it leaves round(x) + 127 in the low bits, a float's biased exponent
# atanh(s) / s as a polynomial in s*s for s up to 1/3, for the logarithm: least relative error, 2e-9
ATANH = (1.0, 0.33333208142742127, 0.20010763626265599, 0.1400090250724604, 0.14005994126081867)  # fmt: skip


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def _constant(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * LANES)


def _pointer(context: Any, builder: Any, array: Any, arguments: Any) -> Any:
    data = context.make_array(array)(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the machine can."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [a, b, c])


def _exp2(builder: Any, x: Any) -> Any:
    """2**x to 1 ulp for |x| <= 126, which x is clamped to; NaN stays NaN."""
    for bound, sign in ((-126.0, ">"), (126.0, "<")):
        x = builder.select(builder.fcmp_ordered(sign, _constant(bound), x), _constant(bound), x)
    shifted = builder.fadd(x, _constant(ROUND))
    r = builder.fsub(x, builder.fsub(shifted, _constant(ROUND)))
    square = builder.fmul(r, r)  # Estrin's order: the chain of operations is half as long as Horner's
    low, middle, high = (_fma(builder, r, _constant(EXP2[i + 1]), _constant(EXP2[i])) for i in (0, 2, 4))
    high = _fma(builder, square, _constant(EXP2[6]), high)
    power = _fma(builder, builder.fmul(square, square), high, _fma(builder, square, middle, low))
    exponent = builder.shl(builder.bitcast(shifted, INTEGERS), ir.Constant(INTEGERS, [23] * LANES))
    return builder.fmul(power, builder.bitcast(exponent, VECTOR))


@instruction
def load(_: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES]"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments)
        return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=4)

    return lanes(array, index), build


@instruction
def broadcast(_: Any, array: Any, index: Any) -> Any:
    """array[index] in every lane"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_pointer(context, builder, signature.args[0], arguments))
        first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.IntType(32)(0))
        return builder.shuffle_vector(first, first, ir.Constant(INTEGERS, [0] * LANES))

    return lanes(array, index), build


@instruction
def store(_: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + LANES] = value"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments)
        builder.store(arguments[2], builder.bitcast(pointer, VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@instruction
def increase(_: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] += the sum of the lanes, added as a tree"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        pointer = _pointer(context, builder, signature.args[0], arguments)
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        total = builder.call(reduce, [FLOAT(-0.0), arguments[2]], fastmath=("reassoc",))
        builder.store(builder.fadd(builder.load(pointer), total), pointer)
        return context.get_dummy_value()

    return types.void(array, index, value), build


@instruction
def zero(_: Any) -> Any:
    return lanes(), lambda context, builder, signature, arguments: _constant(0.0)


@instruction
def add(_: Any, a: Any, b: Any) -> Any:
    return lanes(a, b), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@instruction
def mul(_: Any, a: Any, b: Any) -> Any:
    return lanes(a, b), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@instruction
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c"""
    return lanes(a, b, c), lambda context, builder, signature, arguments: _fma(builder, *arguments)


@instruction
def exp2(_: Any, x: Any) -> Any:
    return lanes(x), lambda context, builder, signature, arguments: _exp2(builder, arguments[0])


@instruction
def sigmoid(_: Any, x: Any) -> Any:
    """1 / (1 + exp(-x))"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        power = _exp2(builder, builder.fmul(arguments[0], _constant(-np.log2(np.e))))
        return builder.fdiv(_constant(1.0), builder.fadd(_constant(1.0), power))

    return lanes(x), build


@instruction
def softplus(_: Any, x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + 2 atanh(s) with w = exp(-|x|) and s = w / (2 + w): no digits cancel"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        negative = builder.fneg(arguments[0])
        positive = builder.fcmp_ordered(">", arguments[0], _constant(0.0))
        falling = builder.select(positive, negative, arguments[0])
        w = _exp2(builder, builder.fmul(falling, _constant(np.log2(np.e))))
        s = builder.fdiv(w, builder.fadd(w, _constant(2.0)))
        square, power = builder.fmul(s, s), _constant(ATANH[-1])
        for coefficient in ATANH[-2::-1]:
            power = _fma(builder, power, square, _constant(coefficient))
        rest = builder.select(positive, arguments[0], _constant(0.0))
        return _fma(builder, builder.fadd(s, s), power, rest)

    return lanes(x), build


@instruction
def slope(_: Any, x: Any, s: Any) -> Any:
    """The derivative of x * sigmoid(x), given s = sigmoid(x): s + s * x * (1 - s)"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, gate = arguments
        return _fma(builder, builder.fmul(gate, value), builder.fsub(_constant(1.0), gate), gate)

    return lanes(x, s), build


# ------------------------------------------------------------------------------------------- kernels
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


# ------------------------------------------------------------------------------------------- threads
@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="accord-scan")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def parallel_for(kernel: Callable[..., None], *arguments: Any, count: int, work: int) -> None:
    """``kernel(*arguments, first, last)`` over [0, count), on torch's number of threads where ``work`` is large enough."""
    workers = max(1, min(torch.get_num_threads(), count, 1 + work // 2**17))
    cuts = [count * i // workers for i in range(workers + 1)]
    others = [_pool(workers - 1).submit(kernel, *arguments, *cuts[i : i + 2]) for i in range(1, workers)]
    kernel(*arguments, *cuts[:2])
    for other in others:
        other.result()
