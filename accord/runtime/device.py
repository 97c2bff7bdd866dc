"""Devices, and the dtype of matrix multiplications."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from accord.errors import UserError


def resolve_device(name: str) -> torch.device:
    """``auto``: CUDA, else MPS, else the CPU.  Raises UserError where the named device is absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is no device; use auto, cpu, cuda, cuda:1 or mps.") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise UserError(f"device: {name!r} is not available on this machine; use device=auto or device=cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name!r} is not here: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def memory_of(device: torch.device) -> int | None:
    """Bytes of the device's memory, or of the computer's for a CPU; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else None
    except (ValueError, OSError):
        return None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix multiplications in bfloat16 where asked for; weights, residual stream, softmax and reductions stay in float32."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def has_bfloat16_instructions() -> bool:
    """Whether this processor multiplies in bfloat16 natively; without such instructions torch is far slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def slow_precision(device: torch.device, precision: str) -> str:
    """A note where the requested precision is the slower one on this machine; empty elsewhere."""
    if precision != "bfloat16" or device.type != "cpu" or has_bfloat16_instructions():
        return ""
    return "note: this processor has no bfloat16 instructions; precision=float32 is several times faster here."
