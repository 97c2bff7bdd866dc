"""Products with int8 weights on an x86 CPU: weights with one scale a row, inputs with one scale a token, integer sums.

Both are turned by the same Hadamard matrix first, in blocks of channels: that leaves their product as it is and spreads
the few large channels of a token, which would take all levels for themselves.  Weights have seven bits where the CPU
lacks VNNI, or torch's sums of pairs would overflow.

Plain form: ``torch.nn.functional.linear``, up to rounding; compared in ``tests/kernels/test_int8.py``.
Sources: Dettmers et al. 2022 (arXiv 2208.07339), vector-wise scales; Ashkboos et al. 2024 (arXiv 2404.00456), rotation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIECE = 2**19  # weights that are rounded at a time: intermediate results stay in the cache
ENGINES = ("x86", "fbgemm", "onednn")


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight (N, D) rounded to int8, in the layout of torch's kernels."""

    packed: Any
    scales: Tensor  # (N,)
    turn: Tensor  # (b, b) orthogonal, by which each block of b channels was turned; b divides D


def select_engine(device: torch.device) -> bool:
    """Whether torch has int8 products on the device; from then on it uses them."""
    found = [name for name in ENGINES if name in torch.backends.quantized.supported_engines]
    if device.type != "cpu" or not found:
        return False
    if torch.backends.quantized.engine not in found:
        torch.backends.quantized.engine = found[0]
    return True


def to_int8(weight: Tensor) -> Int8Weight:
    """A weight (N, D) of any float dtype, rounded; ``select_engine`` comes first."""
    weight = weight.detach()
    turn = hadamard(math.gcd(weight.shape[1], 64))
    whole, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    step = max(1, PIECE // weight.shape[1])
    for first in range(0, len(weight), step):
        piece = slice(first, first + step)
        _round(weight[piece], turn, whole[piece], scales[piece])
    with warnings.catch_warnings():  # torch announces that its quantized tensors will go; the products need them
        warnings.simplefilter("ignore", UserWarning)
        rounded = torch._make_per_tensor_quantized_tensor(whole, 1.0, 0)  # a scale a row is read one by one
    return Int8Weight(torch.ops.quantized.linear_prepack(rounded, None), scales, turn)


def _round(rows: Tensor, turn: Tensor, whole: Tensor, scales: Tensor) -> None:
    """Some rows of the weights into their whole numbers and scales."""
    levels = 127 if torch.cpu._is_vnni_supported() else 63
    rows = _turned(rows.float(), turn)
    torch.amax(rows.abs(), 1, out=scales).clamp_(min=1e-12).div_(levels)
    whole.copy_(rows.div_(scales[:, None]).round_())


def int8_linear(x: Tensor, weight: Int8Weight) -> Tensor:
    """(B, N) x @ weight.T of x (B, D) float32.

    Each token is scaled to [-1, 1] first: its numbers depend on no other's size.
    """
    x = _turned(x, weight.turn)
    size = torch.linalg.vector_norm(x, math.inf, -1, keepdim=True).clamp_(min=1e-12)
    y: Tensor = torch.ops.quantized.linear_dynamic(x / size, weight.packed, reduce_range=False)
    return y.mul_(weight.scales).mul_(size)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    return (x.reshape(-1, len(turn)) @ turn).view(x.shape)


def hadamard(size: int) -> Tensor:
    """(size, size) orthogonal, of entries of one magnitude; ``size`` is a power of two."""
    turn = torch.ones(1, 1)
    while len(turn) < size:
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    return turn / math.sqrt(size)
