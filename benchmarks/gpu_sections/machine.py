"""What the figures were measured on."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

from accord import __version__
from gpu_sections.bench import SMALL, Bench, Row

PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12,
         "4090": 165e12, "3090": 71e12}  # fmt: skip
"""FLOP/s of dense bfloat16 products, by a part of the device's name."""


def measured_peak(device: Any) -> float:
    """FLOP/s of a large product in bfloat16."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    bench = Bench(device, SMALL, 1.0)
    return 2 * size**3 / bench.seconds(lambda: a @ b, 10)


def known_peak(name: str) -> float:
    """FLOP/s of the data sheet; 0 for a device that ``PEAKS`` does not have."""
    return next((peak for part, peak in PEAKS.items() if part in name), 0.0)


def machine(device: Any) -> Row:
    """What the figures were measured on."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    measured = measured_peak(device)
    found: Row = {
        "device": name, "peak_flops": known_peak(name) or measured, "measured_flops": measured,
        "torch": torch.__version__, "transformers": transformers.__version__, "accord": __version__,
        "python": platform.python_version(),
    }  # fmt: skip
    if on_gpu:
        found |= {"gib": torch.cuda.get_device_properties(device).total_memory / 2**30, "cuda": torch.version.cuda}
    return found
