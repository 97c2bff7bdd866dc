"""The selective scan against its definition, and its speed."""

from __future__ import annotations

from typing import Any

import torch

from accord.functional.selective_scan import reference_scan
from accord.kernels.selective_scan import parallel_scan, selective_scan
from gpu_sections.bench import Bench, Row


def scan(bench: Bench) -> list[Row]:
    """Outputs and gradients of the scan's kernels against the definition in float64, and their speed beside torch's scan.

    A prompt with two replies, one of which is continued, and a text alone; lengths below, at and above a chunk.
    """
    on_gpu = bench.device.type == "cuda"
    rows: list[Row] = []

    def draw(length: int, width: int, states: int) -> list[Any]:
        chance = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Any:
            return torch.randn(*shape, generator=chance)

        dt = torch.nn.functional.softplus(2 * normal(length, width) - 2)
        A = -torch.exp(1.5 * normal(width, states))
        return [normal(length, width), dt, A, normal(length, states), normal(length, states), normal(width)]

    def everything(function: Any, inputs: list[Any], where: tuple[Any, ...], kind: Any) -> list[Any]:
        leaves = [v.to(bench.device, kind).requires_grad_() for v in inputs]
        y, finals = function(*leaves, *where)
        chance = torch.Generator().manual_seed(9)
        pulls = [torch.randn(v.shape, generator=chance).to(v) for v in (y, finals)]
        return [y.detach(), finals.detach(), *torch.autograd.grad([y, finals], leaves, pulls)]

    cases = [([64, 1, 37, 128, 65], [-1, 0, 0, 2, -1], 96, 16), ([5, 3], [-1, 0], 48, 5)]
    for lengths, parents, width, states in cases:
        offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=bench.device)
        where = (offsets, torch.tensor(parents, device=bench.device))
        inputs = draw(sum(lengths), width, states)
        expected = everything(reference_scan, inputs, where, torch.float64)
        found = everything(selective_scan, inputs, where, torch.float32)
        wrong = max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))
        name = "triton" if on_gpu else "compiled"
        rows.append({"row": f"scan_{name}_{width}x{states}", "apart": wrong, "at_most": 1e-5})

    length, width = bench.sizes.scan
    row: Row = {"row": "scan_speed"}
    where = (torch.tensor([0, length // 2, length], device=bench.device), torch.tensor([-1, -1], device=bench.device))
    leaves = [v.to(bench.device).requires_grad_() for v in draw(length, width, 16)]
    for name, function in (("ours", selective_scan), ("plain", parallel_scan)):
        bench.free()

        def both(function: Any = function) -> None:
            y, _ = function(*leaves, *where)
            torch.autograd.grad(y.sum(), leaves)

        row[f"{name}_tokens_per_s"] = length / bench.seconds(both, 3, 1)
        if (gib := bench.peak_gib()) is not None:
            row[f"{name}_gib"] = gib
    return [*rows, row]
