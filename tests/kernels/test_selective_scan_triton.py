"""The CUDA kernels against the definition: natively where there is a GPU, else through Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.functional.selective_scan import reference_scan

if find_spec("triton") is None:
    pytest.skip("no triton", allow_module_level=True)
NAMES = ("y", "finals", "x", "dt", "A", "B", "C", "D")
ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by triton when it is imported: a process of its own
runs = pytest.mark.skipif(
    not (ON_GPU or INTERPRETED), reason="part of test_the_tests_of_this_file_pass_in_the_interpreter"
)
# with chunks of 4: a chunk and one more, exactly two, single tokens, a tree of depth three
SHAPES = {
    "one": ([5], [-1]),
    "several": ([8, 1, 3], [-1, -1, -1]),
    "tree": ([3, 4, 1, 9, 2], [-1, 0, 0, 1, 1]),
}


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the tests below run")
def test_the_tests_of_this_file_pass_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "5 passed" in done.stdout


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """On a CPU with small blocks, so that short texts have several."""
    from accord.kernels import selective_scan_triton as scan_triton

    if not ON_GPU:
        monkeypatch.setattr(scan_triton, "CHUNK", 4)
        monkeypatch.setattr(scan_triton, "BLOCK", 2)
    return scan_triton


def draw(length: int, width: int, states: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dt = torch.nn.functional.softplus(2 * normal(length, width) - 2)
    A = -torch.exp(1.5 * normal(width, states))
    return [normal(length, width), dt, A, normal(length, states), normal(length, states), normal(width)]


def everything(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], where: tuple[Any, ...], kind: torch.dtype
) -> list[Tensor]:
    """Outputs, final states and the gradients of all inputs, for fixed random gradients of both outputs."""
    leaves = [v.to(kind).requires_grad_() for v in inputs]
    y, finals = function(*leaves, *where)
    generator = torch.Generator().manual_seed(9)
    gy, gh = (torch.randn(v.shape, generator=generator).to(v) for v in (y, finals))
    return [v.cpu() for v in (y.detach(), finals.detach(), *torch.autograd.grad([y, finals], leaves, [gy, gh]))]


@runs
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_the_reference_scan(kernels: ModuleType, shape: str) -> None:
    """Three channels and three states fill neither a block nor a power of two."""
    lengths, parents = SHAPES[shape]
    inputs, offsets = draw(sum(lengths), 3, 3), torch.tensor([0, *np.cumsum(lengths)])
    where = (offsets, torch.tensor(parents))
    expected = everything(reference_scan, inputs, where, torch.float64)
    device = "cuda" if ON_GPU else "cpu"
    there = [v.to(device) for v in inputs], tuple(v.to(device) for v in where)
    found = everything(lambda *a: kernels.TritonScan.apply(*a, True), *there, torch.float32)
    for name, e, f in zip(NAMES, expected, found, strict=True):
        error = ((f.double() - e).abs().max() / e.abs().max()).item()
        assert error < 2e-6, f"{name}: {error:.1e}"


@runs
def test_without_gradient_nothing_is_kept_and_the_numbers_are_the_same(kernels: ModuleType) -> None:
    lengths, parents = SHAPES["several"]
    device = "cuda" if ON_GPU else "cpu"
    inputs = [v.to(device) for v in draw(sum(lengths), 3, 2)]
    where = [torch.tensor([0, *np.cumsum(lengths)], device=device), torch.tensor(parents, device=device)]
    kept, plain = (kernels.TritonScan.apply(*inputs, *where, keep) for keep in (True, False))
    for a, b in zip(kept, plain, strict=True):
        assert torch.equal(a, b)


@runs
def test_nothing_leaks_between_segments(kernels: ModuleType) -> None:
    """NaN in one of three texts, which share no prompt, reaches neither outputs nor gradients of the others."""
    lengths = [5, 4, 6]
    inputs, offsets = draw(sum(lengths), 2, 2), torch.tensor([0, *np.cumsum(lengths)])
    for x in (inputs[0], inputs[1], inputs[3], inputs[4]):
        x[5:9] = float("nan")
    device = "cuda" if ON_GPU else "cpu"
    leaves = [v.to(device).requires_grad_() for v in inputs]
    y, _ = kernels.TritonScan.apply(*leaves, offsets.to(device), torch.full((3,), -1, device=device), True)
    others = torch.cat([torch.arange(5), torch.arange(9, 15)]).to(device)
    gradients = torch.autograd.grad(y[others].sum(), leaves[:2])
    assert torch.isfinite(y[others]).all()
    assert all(torch.isfinite(g[others]).all() for g in gradients)
