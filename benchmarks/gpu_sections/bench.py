"""What every section gets, and how a side is measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from accord.runtime.device import autocast

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The models and the work of a run."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    d_ff: int
    vocab: int
    rows: int  # texts of a step
    length: int  # tokens of the longest text
    replies: int  # of a rollout
    prompt: int
    new_tokens: int
    mamba_width: int
    mamba_layers: int
    mamba_rows: int
    mamba_length: int
    scan: tuple[int, int]  # tokens, channels
    steps: int


LARGE = Sizes(2048, 16, 32, 8, 8192, 32_768, 8, 1024, 64, 128, 128, 1024, 24, 4, 256, (8192, 2048), 8)
SMALL = Sizes(64, 2, 4, 2, 128, 256, 4, 32, 4, 8, 6, 64, 2, 2, 16, (64, 32), 2)


@dataclass(frozen=True)
class Bench:
    """What every section gets."""

    device: Any
    sizes: Sizes
    peak: float  # FLOP/s

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], times: int | None = None, warm: int = 2) -> float:
        """Seconds of one call, the mean after a warm-up."""
        for _ in range(warm):
            work()
        self.synchronize()
        began = time.perf_counter()
        count = times or self.sizes.steps
        for _ in range(count):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / count

    def autocast(self) -> Any:
        return autocast(self.device, "bfloat16")

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """The most that tensors took since ``free``; None on a CPU, which does not count it."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


@dataclass(frozen=True)
class Work:
    """What a step does: tokens, and model FLOPs."""

    tokens: int
    flops: float
    times: int | None = None  # steps measured; None: as many as the sizes say
    warm: int = 2


def measure(bench: Bench, row: Row, name: str, work: Work, build: Callable[[], Callable[[], Any]]) -> None:
    """Puts a side's tokens/s, MFU and memory into the row; ``build`` makes its model and returns its step."""
    bench.free()
    seconds = bench.seconds(build(), work.times, work.warm)
    row[f"{name}_tokens_per_s"] = work.tokens / seconds
    if work.flops:
        row[f"{name}_mfu"] = work.flops / seconds / bench.peak
    if (gib := bench.peak_gib()) is not None:
        row[f"{name}_gib"] = gib


def apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), 1e-12)
