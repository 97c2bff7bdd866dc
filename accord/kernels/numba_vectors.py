"""Vectors of sixteen float32 for compiled CPU kernels, two AVX2 registers or one of AVX-512, and loops over threads.

Plain form: ``torch.exp2``, ``torch.sigmoid`` and ``torch.nn.functional.softplus``, compared in
``tests/kernels/test_numba_vectors.py`` and ``tests/kernels/test_selective_scan.py``.
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
from numba.core import cgutils, event, types
from numba.extending import intrinsic, models, register_model

from accord.runtime.console import console

LANES = 16

Function = Callable[..., Any]


class _Notice(event.Listener):  # type: ignore[misc]
    """Says once in a process that kernels are compiled, which takes some seconds; loading them from the cache is silent."""

    said = False

    def on_start(self, _: Any) -> None:
        if not self.said:
            self.said = True
            console.print("compiling kernels, once per machine (up to a minute)", markup=False)

    def on_end(self, _: Any) -> None:
        """Nothing to say."""


event.register("numba:compile", _Notice())


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


# ------------------------------------------------------------------------------------------- threads
@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="accord-kernels")


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
