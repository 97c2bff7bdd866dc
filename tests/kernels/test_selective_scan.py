"""The three scans are one function: outputs, states and every gradient, whatever the segments."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accord.functional.selective_scan import reference_scan
from accord.kernels import selective_scan
from accord.kernels import selective_scan_numba as scan_numba
from accord.kernels.selective_scan import parallel_scan
from accord.kernels.selective_scan import selective_scan as scan

# lengths and parents: around a chunk of 32 and of 64, single tokens, a tree of depth three
SHAPES = {
    "one": ([33], [-1]),
    "several": ([1, 32, 64, 7, 65, 31], [-1] * 6),
    "shared prompt": ([40, 3, 66, 1], [-1, 0, 0, 0]),
    "tree": ([5, 33, 2, 70, 1, 6, 9], [-1, 0, 1, 1, 0, -1, 5]),
}
NAMES = ("y", "finals", "x", "dt", "A", "B", "C", "D")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(lengths: list[int], width: int, states: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dt = torch.nn.functional.softplus(2 * normal(length, width) - 2)
    A = -torch.exp(1.5 * normal(width, states))
    return [normal(length, width), dt, A, normal(length, states), normal(length, states), normal(width)]


def tree(lengths: list[int], parents: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor([0, *np.cumsum(lengths)]), torch.tensor(parents)


def everything(
    function: Callable[..., tuple[Tensor, Tensor]],
    inputs: list[Tensor],
    offsets: Tensor,
    parents: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Outputs, final states and the gradients of all inputs, for fixed random gradients of both outputs."""
    leaves = [v.to(dtype).requires_grad_() for v in inputs]
    y, finals = function(*leaves, offsets, parents)
    generator = torch.Generator().manual_seed(9)
    gy, gh = (torch.randn(v.shape, generator=generator).to(dtype) for v in (y, finals))
    grads = torch.autograd.grad([y, finals], leaves, [gy, gh])
    return [y.detach(), finals.detach(), *grads]


def test_the_reference_scan_equals_hand_computed_numbers() -> None:
    """E = N = 1: h = e^(-dt) h + dt x B, y = C h + D x, the second segment continuing the first."""
    x, dt, B, C = ([[v] for v in row] for row in ([1.0, 2.0, 3.0], [0.5, 1.0, 0.25], [2.0, 1.0, -1.0], [1.0, 3.0, 2.0]))
    h1 = 0.5 * 1 * 2
    h2 = math.exp(-1.0) * h1 + 1.0 * 2 * 1
    h3 = math.exp(-0.25) * h2 + 0.25 * 3 * -1
    double = [torch.tensor(v, dtype=torch.float64) for v in (x, dt, [[-1.0]], B, C, [10.0])]
    y, finals = reference_scan(*double, *tree([2, 1], [-1, 0]))
    assert y[:, 0].tolist() == pytest.approx([h1 + 10, 3 * h2 + 20, 2 * h3 + 30], rel=1e-12)
    assert finals[:, 0, 0].tolist() == pytest.approx([h2, h3], rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("function", "dtype", "tolerance"),
    [(parallel_scan, torch.float64, 1e-12), (parallel_scan, torch.float32, 2e-6), (scan, torch.float32, 2e-6)],
    ids=["parallel64", "parallel32", "compiled32"],
)
def test_every_scan_is_the_reference_scan(
    shape: str, function: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype, tolerance: float
) -> None:
    lengths, parents = SHAPES[shape]
    inputs, where = draw(lengths, 48, 5), tree(lengths, parents)
    expected = everything(reference_scan, inputs, *where, torch.float64)
    found = everything(function, inputs, *where, dtype)
    for name, e, f in zip(NAMES, expected, found, strict=True):
        assert f.dtype is dtype
        error = ((f.double() - e).abs().max() / e.abs().max()).item()
        assert error < tolerance, f"{name}: {error:.1e}"


def test_the_parallel_scans_gradients_pass_gradcheck() -> None:
    lengths, parents = [3, 66, 2], [-1, 0, 0]
    inputs = [v.double().requires_grad_() for v in draw(lengths, 2, 2)]
    where = tree(lengths, parents)
    assert torch.autograd.gradcheck(lambda *a: parallel_scan(*a, *where), inputs, fast_mode=True)


def test_the_compiled_scan_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparisons above would compare the parallel scan with itself."""
    calls = []
    kernel = scan_numba.scan_forward
    monkeypatch.setattr(scan_numba, "scan_forward", lambda *a: (calls.append(1), kernel(*a)))
    inputs, where = draw([9], 16, 4), tree([9], [-1])
    scan(*inputs, *where)
    assert len(calls) == 1
    scan(*(v.double() for v in inputs), *where)
    scan(*draw([9], 24, 4), *where)  # 24 channels do not fill two vectors
    assert len(calls) == 1


def test_without_gradient_the_numbers_are_the_same() -> None:
    lengths, parents = SHAPES["tree"]
    inputs, where = draw(lengths, 32, 16), tree(lengths, parents)
    with_grad = everything(scan, inputs, *where, torch.float32)
    with torch.no_grad():
        y, finals = scan(*inputs, *where)
    assert torch.equal(y, with_grad[0])
    assert torch.equal(finals, with_grad[1])


def test_gradients_are_right_where_only_one_output_is_used() -> None:
    lengths, parents = SHAPES["shared prompt"]
    inputs, where = draw(lengths, 16, 4), tree(lengths, parents)
    for pick in (0, 1):
        grads = []
        for function, dtype in ((reference_scan, torch.float64), (scan, torch.float32)):
            leaves = [v.to(dtype).requires_grad_() for v in inputs]
            grads.append(
                torch.autograd.grad(
                    function(*leaves, *where)[pick].square().sum(), leaves, allow_unused=True, materialize_grads=True
                )
            )
        for e, f in zip(*grads, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=1e-4, atol=1e-5 * max(e.abs().max().item(), 1e-9))


@pytest.mark.parametrize("function", [reference_scan, parallel_scan, scan])
@pytest.mark.parametrize("poison", [math.nan, 1e30, math.inf])
def test_nothing_leaks_between_segments(function: Callable[..., tuple[Tensor, Tensor]], poison: float) -> None:
    lengths = [6, 40, 9]
    offsets, parents = tree(lengths, [-1, -1, -1])
    clean = draw(lengths, 16, 3)
    bad = [v.clone() for v in clean]
    for v in (bad[0], bad[3], bad[4]):  # x, B, C of the middle segment
        v[6:46] = poison
    keep = torch.tensor([*range(6), *range(46, 55)])
    results = []
    for inputs in (clean, bad):
        leaves = [v.clone().requires_grad_() for v in inputs]
        y, finals = function(*leaves, offsets, parents)
        (y[keep].square().sum() + finals[[0, 2]].sum()).backward()
        results.append([y[keep], finals[[0, 2]], *(leaves[i].grad[keep] for i in (0, 1, 3, 4))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [parallel_scan, scan])
def test_strong_and_vanishing_decay_stay_finite_and_exact(function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """exp(dt A) from 1 down to below the smallest float: finite, and right."""
    lengths = [50]
    inputs = draw(lengths, 16, 4)
    inputs[1] = torch.linspace(0, 40, 50)[:, None].expand(50, 16).contiguous()
    expected = everything(reference_scan, inputs, *tree(lengths, [-1]), torch.float64)
    found = everything(function, inputs, *tree(lengths, [-1]), torch.float32)
    for name, e, f in zip(NAMES, expected, found, strict=True):
        assert f.isfinite().all(), name
        assert ((f - e).abs().max() / e.abs().max()).item() < 3e-6, name


def test_threads_change_no_bit() -> None:
    lengths, parents = [100, 30, 64, 200], [-1, 0, 0, -1]
    inputs, where = draw(lengths, 80, 16), tree(lengths, parents)  # 80 channels: the last group is half full
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(everything(scan, inputs, *where, torch.float32))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_is_computed_in_float32() -> None:
    lengths, parents = SHAPES["shared prompt"]
    inputs, where = [v.bfloat16() for v in draw(lengths, 16, 4)], tree(lengths, parents)
    y, finals = scan(*inputs, *where)
    expected, states = scan(*(v.float() for v in inputs), *where)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(finals, states)


def test_softplus_and_gate_are_those_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.cat([torch.linspace(-80, 80, 4096), 3 * torch.randn(4096, generator=generator)]).view(-1, 64)
    g = torch.randn(128, 32, generator=generator)
    y, z = wide[:, :32], wide[:, 32:]  # the gate is half of wider rows
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [v.to(dtype).requires_grad_() for v in (y.contiguous(), z)]
        outputs = selective_scan.softplus(leaves[0]), selective_scan.gate(*leaves)
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, [g.to(dtype)] * 2)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)
    small = results[0][0][results[0][0] < 1e-3].double()  # relative, where the step sizes are smallest
    assert len(small) > 500
    torch.testing.assert_close(small, results[1][0][results[0][0] < 1e-3], rtol=1e-5, atol=1e-30)


SCRIPT = """
import json, sys, warnings
import torch
sys.modules["numba"] = None  # an import of it fails: so nothing imports it before it is needed
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from accord.models.mamba import Mamba
    from accord.kernels.selective_scan import runs_compiled, selective_scan
    torch.manual_seed(0)
    x, B = torch.rand(5, 16), torch.rand(5, 2)
    for _ in range(2):
        y, _ = selective_scan(x, x, -torch.ones(16, 2), B, B, torch.ones(16), torch.tensor([0, 5]), torch.tensor([-1]))
print(json.dumps([runs_compiled(x), [str(w.message) for w in seen if "numba" in str(w.message)], y.tolist()]))
"""


def test_without_numba_it_says_so_once_and_runs() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    compiled, messages, found = json.loads(done.stdout)
    assert not compiled
    assert len(messages) == 1
    assert "pip install numba" in messages[0]
    torch.manual_seed(0)
    x, B = torch.rand(5, 16), torch.rand(5, 2)
    y, _ = reference_scan(x, x, -torch.ones(16, 2), B, B, torch.ones(16), *tree([5], [-1]))
    torch.testing.assert_close(torch.tensor(found), y, rtol=1e-5, atol=1e-6)


def test_parallel_scan_runs_where_no_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, parents = SHAPES["tree"]
    inputs, where = draw(lengths, 32, 16), tree(lengths, parents)
    compiled = everything(scan, inputs, *where, torch.float32)
    monkeypatch.setattr(selective_scan, "runs_compiled", lambda *_: False)
    for name, e, f in zip(NAMES, compiled, everything(scan, inputs, *where, torch.float32), strict=True):
        assert ((f - e).abs().max() / e.abs().max()).item() < 4e-6, name


def test_other_tensors_than_the_kernels_know_are_left_to_torch() -> None:
    x, double, state = torch.randn(4, 16), torch.randn(4, 16).double(), torch.zeros(4, 2, 16)
    assert selective_scan.runs_compiled(x, x)
    assert not selective_scan.runs_compiled(x, double)
    assert not selective_scan.runs_compiled(x, x.as_subclass(type("Other", (torch.Tensor,), {})))
    offsets, parents = torch.tensor([0, 4]), torch.tensor([-1])
    rates, inputs = -torch.ones(16, 2).double(), torch.randn(4, 2)
    y, _ = scan(x, x.abs(), rates, inputs, inputs, torch.ones(16), offsets, parents)  # a kernel would read half of A
    wanted, _ = reference_scan(x, x.abs(), rates.float(), inputs, inputs, torch.ones(16), offsets, parents)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="one dtype"):
        selective_scan.scan_step(x, double, -torch.ones(2, 16), inputs, torch.ones(16), x.repeat(1, 2), state)


def test_a_weights_memory_can_be_freed_after_a_recomputed_pass() -> None:
    """FSDP frees gathered weights; with checkpointing the backward pass gets them as plain tensors."""
    lengths = [5, 4]
    inputs = draw(lengths, 32, 4)
    skip, bias = torch.nn.Parameter(inputs[5]), torch.nn.Parameter(torch.zeros(32))
    weight, previous = torch.nn.Parameter(torch.ones(32, 1, 4)), torch.tensor([-1, 0, 1, 2, 3, -1, 5, 6, 7])
    inputs[0].requires_grad_()

    def layer(x: Tensor) -> Tensor:
        convolved = selective_scan.causal_conv(x, weight, bias, previous)
        return scan(convolved, *inputs[1:5], skip, *tree(lengths, [-1, -1]))[0]

    assert selective_scan.runs_compiled(inputs[0], weight, bias, skip)
    checkpoint(layer, inputs[0], use_reentrant=False).sum().backward()
    for parameter in (skip, bias, weight):
        parameter.untyped_storage().resize_(0)
