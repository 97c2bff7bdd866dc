"""Products with int8 weights on an x86 CPU: weights with one scale a row, inputs with one scale a token, integer sums.

Both are rotated by the same Hadamard matrix first, in blocks of channels: that leaves their product as it is and
distributes the few large channels of a token, which would take all levels for themselves.  Inputs have eight bits,
weights seven: sums of pairs would overflow the 16 bits that AVX2 has for them.

Plain form: ``torch.nn.functional.linear``, up to rounding; compared in ``tests/kernels/test_int8.py``.
Sources: Dettmers et al. 2022 (arXiv 2208.07339), vector-wise scales; Ashkboos et al. 2024 (arXiv 2404.00456), rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS, INPUT_LEVELS = 63, 127  # of the magnitudes of a weight and of an input
WIDEST = 2**31 // (255 * LEVELS)  # inputs of a row whose products surely fit into 32 bits
PIECE = 2**19  # weights that are rounded at a time: intermediate results stay in the cache
SMALLEST = 1e-12  # size of a row, so that one of zeros has a scale


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight (N, D) rounded to int8, in the layout of ``int8_numba.multiply``."""

    panels: Any  # int8
    zeros: Any  # int32, as many as the panels have outputs: what an input of 0 adds up to
    scales: Any  # as many
    rotation: Tensor  # (b, b) orthogonal, by which each block of b channels is rotated; b divides D
    outputs: int  # N
    quads: int  # D / 4, rounded up


def has_int8_products(device: torch.device) -> bool:
    """Whether there are int8 products on the device: on a CPU with AVX2."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def to_int8(weight: Tensor) -> Int8Weight:
    """A weight (N, D) of any float dtype, rounded."""
    from accord.kernels.int8_numba import LANES, QUAD

    weight = weight.detach()
    outputs, width = weight.shape
    assert width <= WIDEST, f"a row of {width} weights overflows the sums"
    rotation = hadamard(math.gcd(width, 64))
    quads, padded = -(-width // QUAD), -(-outputs // LANES) * LANES
    panels = torch.empty(padded // LANES, quads, LANES, dtype=torch.int32)  # four int8 each
    zeros, scales = torch.zeros(padded, dtype=torch.int32), torch.zeros(padded)
    step = max(1, PIECE // width // LANES) * LANES
    for first in range(0, outputs, step):
        rows = rotate(weight[first : first + step].float(), rotation)
        piece = slice(first, first + len(rows))
        torch.amax(rows.abs(), 1, out=scales[piece]).clamp_(min=SMALLEST).div_(LEVELS)
        rounded = torch.zeros(-(-len(rows) // LANES) * LANES, quads * QUAD, dtype=torch.int8)
        rounded[: len(rows), :width] = rows.div_(scales[piece, None]).round_()
        zeros[piece] = 128 * rounded[: len(rows)].sum(1, dtype=torch.int32)
        fours = rounded.view(torch.int32).view(-1, LANES, quads)
        panels[first // LANES :][: len(fours)] = fours.transpose(1, 2)
    scales /= INPUT_LEVELS
    return Int8Weight(_flat(panels.view(torch.int8)), _flat(zeros), _flat(scales), rotation, outputs, quads)


def int8_linear(x: Tensor, weight: Int8Weight) -> Tensor:
    """(B, N) float32: x @ weight.T of x (B, D) of any float dtype, under autocast too.

    Each token has a scale of its own: its numbers depend on no other's.
    """
    from accord.kernels import int8_numba as kernels

    (rows, width), outputs, quads = x.shape, weight.outputs, weight.quads
    x = rotate(x.float(), weight.rotation)
    sizes = _flat(torch.linalg.vector_norm(x, math.inf, -1))
    rounded = np.empty(rows * quads * kernels.QUAD, np.uint8)
    y = torch.empty(rows, outputs)
    kernels.parallel_for(
        kernels.round_rows, _flat(x), sizes, rounded, width, quads * kernels.QUAD, count=rows, work=x.numel()
    )
    inputs, panels = rounded.view(np.int32), -(-outputs // kernels.LANES)
    arrays = (inputs, weight.panels, weight.zeros, weight.scales, sizes, _flat(y))
    kernels.parallel_for(kernels.multiply, *arrays, rows, quads, outputs, count=panels, work=rows * outputs * quads)
    return y


def _flat(tensor: Tensor) -> Any:
    """The numbers of a contiguous tensor in one row, as the kernels take them."""
    return tensor.view(-1).numpy()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B, D) with each block of channels rotated; their products with weights rotated alike stay."""
    rotated = torch.empty_like(x, memory_format=torch.contiguous_format)
    blocks = rotated.view(-1, len(rotation))
    torch.mm(x.reshape(-1, len(rotation)), rotation, out=blocks)  # autocast leaves products with ``out`` in float32
    return rotated


def hadamard(size: int) -> Tensor:
    """(size, size) orthogonal, of entries of one magnitude; ``size`` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)
