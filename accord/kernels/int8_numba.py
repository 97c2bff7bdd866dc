"""Integer dot products for ``int8``: four inputs of eight bits by four weights of eight bits a lane, on x86 with AVX2.

An instruction multiplies unsigned inputs by signed weights and adds neighbors in 16 bits, a second one adds those in 32.
With inputs of up to 255 and weights of up to 63 no sum overflows, and integer sums have no order: neither the number of
threads nor the rows beside a row change a bit.

Plain form: ``torch.matmul`` of integers, compared in ``tests/kernels/test_int8.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import models, register_model

from accord.kernels.numba_vectors import compiled, instruction, parallel_for

__all__ = ["LANES", "QUAD", "multiply", "round_rows", "parallel_for"]

QUAD = 4  # products that one lane adds up
LANES = 8  # outputs of a panel
ROWS = 8  # of inputs that a panel is multiplied by at once: their sums stay in the registers


class Words(types.Type):
    """Eight int32 in a vector register."""

    def __init__(self) -> None:
        super().__init__(name="Words")


words = Words()
VECTOR = ir.VectorType(ir.IntType(32), LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)


@register_model(Words)
class _WordsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def _pointer(context: Any, builder: Any, array: Any, arguments: Any) -> Any:
    data = context.make_array(array)(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


def _broadcast(builder: Any, value: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(VECTOR, [0] * LANES))


@instruction
def zero(_: Any) -> Any:
    return words(), lambda context, builder, signature, arguments: ir.Constant(VECTOR, [0] * LANES)


@instruction
def load(_: Any, array: Any, index: Any) -> Any:
    """32 bytes from array[index] on"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments)
        return builder.load(builder.bitcast(pointer, VECTOR.as_pointer()), align=1)

    return words(array, index), build


@instruction
def broadcast(_: Any, array: Any, index: Any) -> Any:
    """array[index], an int32, in every lane"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _broadcast(builder, builder.load(_pointer(context, builder, signature.args[0], arguments)), VECTOR)

    return words(array, index), build


@instruction
def write(_: Any, out: Any, index: Any, totals: Any, zeros: Any, scales: Any, output: Any, size: Any) -> Any:
    """out[index + i] = (totals[i] - zeros[output + i]) * scales[output + i] * size of each lane, in float32"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def at(array: int, index: int, kind: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[array], (arguments[array], arguments[index]))
            return builder.bitcast(pointer, kind.as_pointer())

        whole = builder.sub(arguments[2], builder.load(at(3, 5, VECTOR), align=4))
        scaled = builder.fmul(builder.sitofp(whole, FLOATS), builder.load(at(4, 5, FLOATS), align=4))
        builder.store(builder.fmul(scaled, _broadcast(builder, arguments[6], FLOATS)), at(0, 1, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(out, index, totals, zeros, scales, output, size), build


@instruction
def dot(_: Any, inputs: Any, weights: Any, total: Any) -> Any:
    """total plus, in each lane, the dot product of four unsigned inputs and four signed weights"""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def call(name: str, result: Any, argument: Any, *values: Any) -> Any:
            kind = ir.FunctionType(result, [argument] * 2)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        unsigned, signed = (builder.bitcast(value, BYTES) for value in arguments[:2])
        pairs = call("llvm.x86.avx2.pmadd.ub.sw", HALVES, BYTES, unsigned, signed)
        quads = call("llvm.x86.avx2.pmadd.wd", VECTOR, HALVES, pairs, ir.Constant(HALVES, [1] * 2 * LANES))
        return builder.add(arguments[2], quads)

    return words(inputs, weights, total), build


@compiled
def round_rows(x, sizes, out, width, padded, first, last):  # type: ignore[no-untyped-def]
    """out (B, padded) uint8 = 128 + 127 x / size, rounded, of rows [first, last) of x (B, width)."""
    for row in range(first, last):
        line, rounded = x[row * width : (row + 1) * width], out[row * padded : (row + 1) * padded]
        scale = np.float32(127.0) / sizes[row] if sizes[row] > 0 else np.float32(0.0)
        for i in range(width):
            rounded[i] = np.int32(line[i] * scale + np.float32(128.5))
        rounded[width:] = 0


@compiled
def multiply(x, panels, zeros, scales, sizes, out, rows, quads, outputs, first, last):  # type: ignore[no-untyped-def]
    """out (rows, outputs) = x @ weight.T for panels [first, last) of the weight.

    ``x`` (rows, quads) int32, four bytes of ``round_rows`` each; ``panels`` (N / LANES, quads, LANES, QUAD) int8;
    ``zeros`` (N,) int32, what inputs of 0 add up to; ``scales`` (N,) and ``sizes`` (rows,) give float32 from the
    integers.  N is ``outputs`` rounded up to whole panels.  A panel is read from memory once, whatever the rows.
    """
    line = np.empty(LANES, np.float32)
    step = LANES * QUAD
    for panel in range(first, last):
        output = panel * LANES
        count = min(LANES, outputs - output)
        begin = panel * quads * step
        whole = rows // ROWS * ROWS if count == LANES else 0
        for row in range(0, whole, ROWS):
            x0 = row * quads
            x1, x2, x3, x4 = x0 + quads, x0 + 2 * quads, x0 + 3 * quads, x0 + 4 * quads
            x5, x6, x7 = x4 + quads, x4 + 2 * quads, x4 + 3 * quads
            a, b, c, d, e, f, g, h = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
            for k in range(quads):
                weights = load(panels, begin + k * step)
                a = dot(broadcast(x, x0 + k), weights, a)
                b = dot(broadcast(x, x1 + k), weights, b)
                c = dot(broadcast(x, x2 + k), weights, c)
                d = dot(broadcast(x, x3 + k), weights, d)
                e = dot(broadcast(x, x4 + k), weights, e)
                f = dot(broadcast(x, x5 + k), weights, f)
                g = dot(broadcast(x, x6 + k), weights, g)
                h = dot(broadcast(x, x7 + k), weights, h)
            at = row * outputs + output
            write(out, at, a, zeros, scales, output, sizes[row])
            write(out, at + outputs, b, zeros, scales, output, sizes[row + 1])
            write(out, at + 2 * outputs, c, zeros, scales, output, sizes[row + 2])
            write(out, at + 3 * outputs, d, zeros, scales, output, sizes[row + 3])
            write(out, at + 4 * outputs, e, zeros, scales, output, sizes[row + 4])
            write(out, at + 5 * outputs, f, zeros, scales, output, sizes[row + 5])
            write(out, at + 6 * outputs, g, zeros, scales, output, sizes[row + 6])
            write(out, at + 7 * outputs, h, zeros, scales, output, sizes[row + 7])
        for row in range(whole, rows):
            a = zero()
            for k in range(quads):
                a = dot(broadcast(x, row * quads + k), load(panels, begin + k * step), a)
            write(line, 0, a, zeros, scales, output, sizes[row])
            for i in range(count):
                out[row * outputs + output + i] = line[i]
