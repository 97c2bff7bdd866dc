"""Sums and moments under a mask; masked elements, NaN included, reach neither a value nor a gradient."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from accord.types import Mean

Array = TypeVar("Array", bound=Any)
"""A tensor or a NumPy array: functions of operations that both have take either, and NumPy needs a third of torch's time
for a few numbers."""


def wide(x: Array) -> Array:
    """``x`` in a type safe to sum in: float64 stays, everything else becomes float32."""
    found: Any = x
    if isinstance(x, Tensor):
        return found if x.dtype is torch.float64 else found.float()  # type: ignore[no-any-return]
    return found if x.dtype == "float64" else found.astype("float32", copy=False)  # type: ignore[no-any-return]


def same_shape(expected: Array, **others: Array) -> None:
    """Raises ValueError, with the name, where a shape differs: (B,) against (B, 1) would broadcast silently."""
    for name, other in others.items():
        if other.shape != expected.shape:
            raise ValueError(f"{name}: shape {tuple(other.shape)}, expected {tuple(expected.shape)}")


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` where ``mask`` (bool, same shape) is true, 0 elsewhere.  Raises ValueError where the shapes differ."""
    same_shape(x, mask=mask)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def mean_over(x: Tensor, mask: Tensor) -> Mean:
    """The mean of ``x`` where ``mask`` is true, as a sum over a count."""
    return Mean(keep(wide(x), mask).sum(), mask.sum())


def mean_of(x: Tensor) -> Mean:
    """The mean over all elements of ``x``, as a sum over a count."""
    return Mean(wide(x).sum(), torch.tensor(x.numel(), device=x.device))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """() the mean of ``x`` where ``mask`` is true; 0 where nothing is."""
    mean = mean_over(x, mask)
    return mean.total / mean.count.clamp(min=1)


def centered(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` less its masked mean (0 where masked), and that mean.

    An offset is subtracted first, so that equal values give exact zeros however large they are.
    """
    x = keep(wide(x), mask)
    offset = torch.where(mask, x, -torch.inf).amax() if x.numel() else x.sum()
    offset = torch.where(mask.any(), offset, 0.0).detach()
    shifted = keep(x - offset, mask)
    mean = masked_mean(shifted, mask)
    return keep(shifted - mean, mask), mean + offset


def masked_var(x: Tensor, mask: Tensor, unbiased: bool = False) -> Tensor:
    """() the variance of ``x`` where ``mask`` is true: of the population, or ``unbiased`` (n - 1)."""
    deviation, _ = centered(x, mask)
    return deviation.square().sum() / (mask.sum() - int(unbiased)).clamp(min=1)


def deviations(x: Array) -> Array:
    """``x`` less the mean of all its elements; equal ones give exact zeros however large they are, as in ``centered``."""
    if 0 in x.shape:
        return x
    shifted: Array = x - x.max()
    result: Array = shifted - shifted.sum() / math.prod(x.shape)
    return result


def mean_square(x: Array) -> Array:
    """() over all elements; 0 where there are none."""
    mean: Array = (x * x).sum() / max(math.prod(x.shape), 1)
    return mean


def _mean_square(deviation: Tensor, mask: Tensor) -> Tensor:
    return deviation.square().sum() / mask.sum().clamp(min=1)


def standardize(x: Array, mask: Tensor | None = None) -> Array:
    """Mean 0 and deviation 1 (of the population, + 1e-8 below) where ``mask`` is true, 0 elsewhere.

    Without a mask over all elements, and for tensors and NumPy arrays alike.
    """
    deviation: Any = deviations(wide(x)) if mask is None else centered(x, mask)[0]
    square = mean_square(deviation) if mask is None else _mean_square(deviation, mask)
    scaled: Array = deviation / (square**0.5 + 1e-8)
    return scaled


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """``x`` scaled to unit variance where ``mask`` is true, 0 elsewhere; without ``shift_mean`` the mean stays.

    Population variance and 1e-8 under the root, as in lm-human-preferences, which whitens advantages with the shift
    and rewards without (a shift could flip the sign of the score at the last token).
    """
    deviation, mean = centered(x, mask)
    scaled = deviation * torch.rsqrt(_mean_square(deviation, mask) + 1e-8)
    return scaled if shift_mean else keep(scaled + mean, mask)
