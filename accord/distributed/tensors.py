"""A sharded tensor's part on this rank, and tensors that take the form of another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a tensor: those on this rank."""

    rows: Tensor
    first: int
    shape: tuple[int, ...]  # of the whole tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk, read as far as it is needed."""

    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    """The rows from the first number up to the second."""


def part_of(x: Any) -> Part | None:
    """This rank's rows of a sharded tensor; None for anything else."""
    if not isinstance(x, DTensor):
        return None
    _, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return Part(x.to_local().detach(), offset[0] if offset else 0, tuple(x.shape))


def whole(x: Tensor) -> Tensor:
    """A tensor with the rows of all ranks, which call this together; one that is not sharded is returned as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def fit(saved: Any, model: Tensor) -> Any:
    """``saved``, whole or stored in parts, sharded as ``model`` is; other values are returned as they are.

    Raises ValueError where the shapes differ.
    """
    if not isinstance(saved, (Stored, Tensor)) or (isinstance(saved, Tensor) and saved.ndim == 0):
        return saved
    if tuple(saved.shape) != tuple(model.shape):
        raise ValueError(f"shape {tuple(saved.shape)}, expected {tuple(model.shape)}")
    read = saved.read if isinstance(saved, Stored) else lambda start, end: saved[start:end]
    part = part_of(model)
    if part is None or not isinstance(model, DTensor):
        return read(0, saved.shape[0]) if isinstance(saved, Stored) else saved
    rows = read(part.first, part.first + len(part.rows)) if len(part.rows) else part.rows
    local = rows.to(part.rows.device, part.rows.dtype).contiguous().clone()
    return DTensor.from_local(
        local, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def complete(saved: Any) -> Any:
    """``saved``, read whole where it is stored in parts."""
    return saved.read(0, saved.shape[0]) if isinstance(saved, Stored) else saved
