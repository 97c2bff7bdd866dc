"""Mamba's selective scan, convolution and gate, by the fastest implementation for the given tensors.

``selective_scan`` selects one of three: ``parallel_scan`` is torch for any device and dtype, ``CompiledScan`` is for
float32 on a CPU, ``selective_scan_triton.TritonScan`` on CUDA.  Shapes are those of ``functional.selective_scan``.

Plain form: ``accord.functional.selective_scan.reference_scan`` and ``accord.functional.selective_scan.causal_conv``,
compared in ``tests/kernels/test_selective_scan.py``.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from accord.functional import selective_scan as functional

STEPS = 64  # tokens whose states parallel_scan stores at once


# ------------------------------------------------------------------------------------------- plain torch
def _recurrence(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along dimension 1 of (S, T, E, N) from zero, in about 2 sqrt(T) steps, each over a slice.

    Products of decays only, never quotients: nothing overflows, however strong the decay.
    """
    rows, steps = a.shape[:2]
    inner = max(1, math.isqrt(steps))
    short = -steps % inner
    if short:  # decay 1 and push 0 leave the state unchanged
        a = torch.cat([a, a.new_ones(rows, short, *a.shape[2:])], 1)
        b = torch.cat([b, b.new_zeros(rows, short, *b.shape[2:])], 1)
    shape = (rows, -1, inner, *a.shape[2:])
    decay, h = a.reshape(shape).clone(), b.reshape(shape).clone()
    for i in range(1, inner):
        h[:, :, i].addcmul_(decay[:, :, i], h[:, :, i - 1])
        decay[:, :, i] *= decay[:, :, i - 1]
    for j in range(1, h.shape[1]):
        h[:, j].addcmul_(decay[:, j], h[:, j - 1, -1:])
    return h.reshape(rows, -1, *a.shape[2:])[:, :steps]


def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The decays and the states of (S, T, E) tokens, both (S, T, E, N), after the states h (S, E, N)."""
    decay = torch.exp(dt[..., None] * A)
    push = (dt * x)[..., None] * B[:, :, None, :]
    push[:, 0] += decay[:, 0] * h
    return decay, _recurrence(decay, push)


class _Chunk(torch.autograd.Function):
    """y without its D term, and the last state.  Stores its inputs only; the backward pass computes the states again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, dt, A, B, C, h)
        _, states = _states(x, dt, A, B, h)
        return torch.einsum("sten,stn->ste", states, C), states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, glast: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C, h = ctx.saved_tensors
        decay, states = _states(x, dt, A, B, h)
        g = gy[..., None] * C[:, :, None, :]
        g[:, -1] += glast
        later = torch.cat([decay[:, 1:], torch.ones_like(decay[:, :1])], 1)  # g_t is pulled back by the next decay
        g = _recurrence(later.flip(1), g.flip(1)).flip(1)
        through_b = torch.einsum("sten,stn->ste", g, B)
        bent = g * decay * torch.cat([h[:, None], states[:, :-1]], 1)  # the gradient of log(decay)
        return (
            dt * through_b,
            x * through_b + (bent * A).sum(-1),
            torch.einsum("sten,ste->en", bent, dt),
            torch.einsum("sten,ste->stn", g, dt * x),
            torch.einsum("sten,ste->stn", states, gy),
            g[:, 0] * decay[:, 0],
        )


def _depths(parents: list[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def parallel_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, offsets: Tensor, parents: Tensor
) -> tuple[Tensor, Tensor]:
    """All segments of one depth of the prefix tree at once, a chunk of time at a time; any device, any float dtype."""
    depths = torch.tensor(_depths(parents.tolist()), device=x.device)
    states = x.new_zeros(len(parents) + 1, *A.shape)  # the last row is where roots start
    outputs, places = [], []
    for depth in range(int(depths.max()) + 1):
        segments = (depths == depth).nonzero()[:, 0]
        lengths = offsets[segments + 1] - offsets[segments]
        time = torch.arange(int(lengths.max()), device=x.device)
        inside = time < lengths[:, None]
        index = torch.where(inside, offsets[segments, None] + time, 0)
        padded = [
            torch.where(inside[..., None], v[index], 0.0) for v in (x, dt, B, C)
        ]  # dt = 0 leaves the state unchanged
        h, ys = states[parents[segments]], []
        for xs, dts, bs, cs in zip(*(torch.split(v, STEPS, 1) for v in padded), strict=True):
            y, h = _Chunk.apply(xs, dts, A, bs, cs, h)  # type: ignore[no-untyped-call]
            ys.append(y)
        states = states.index_put((segments,), h)
        outputs.append(torch.cat(ys, 1)[inside])
        places.append(index[inside])
    y = torch.cat(outputs)[torch.cat(places).argsort()]
    return y + D * x, states[:-1]


# ------------------------------------------------------------------------------------------- compiled
@cache
def _numba_found() -> bool:
    if find_spec("numba") is not None:
        return True
    warnings.warn("no numba: Mamba runs several times slower on a CPU; to fix it: pip install numba", stacklevel=3)
    return False


def _alike(x: Tensor, *others: Tensor) -> bool:
    """Whether all are ordinary tensors (not, say, shards of one) of one dtype on one device."""
    ordinary = all(type(v) in (Tensor, nn.Parameter) for v in (x, *others))
    return ordinary and all(v.dtype is x.dtype and v.device == x.device for v in others)


def runs_compiled(x: Tensor, *others: Tensor) -> bool:
    """Whether the compiled kernels support x (…, E) and others: all float32 on a CPU, whole vectors of channels in x."""
    takes = x.device.type == "cpu" and x.dtype is torch.float32 and x.shape[-1] % 16 == 0
    return takes and _alike(x, *others) and _numba_found()


@cache
def _triton_found() -> bool:
    return find_spec("triton") is not None


def _flat(tensor: Tensor) -> Any:
    """A contiguous tensor as the flat array that the kernels take.

    Those of a parameter are copied: torch never frees memory that NumPy has used, and FSDP needs it to.
    """
    plain = tensor.detach()
    return (plain.clone() if isinstance(tensor, nn.Parameter) else plain).view(-1).numpy()


def _rows(x: Tensor) -> Any:
    """The memory from the first to the last number of an (L, E) view with contiguous rows, as one row."""
    assert x.stride(1) == 1, "rows must be contiguous"
    return x.detach().as_strided(((len(x) - 1) * x.stride(0) + x.shape[1],), (1,)).numpy()


def _forward(
    x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, D: Tensor, offsets: Tensor, parents: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (L, E), final states (S, N, E) and the states to store; ``a`` (N, E) is A transposed, times log2(e)."""
    from accord.kernels import selective_scan_numba as kernels

    states, width = a.shape
    chunks = int(((offsets.diff() + kernels.CHUNK - 1) // kernels.CHUNK).sum()) if keep else 0
    y, finals, marks = (
        torch.empty_like(x),
        x.new_empty(len(parents), states, width),
        x.new_empty(chunks * states * width),
    )
    arrays = map(_flat, (x, dt, a, B, C, D, offsets, parents, y, finals, marks))
    kernels.parallel_for(
        kernels.scan_forward, *arrays, width, states, count=width // kernels.LANES, work=x.numel() * states
    )
    return y, finals, marks


class CompiledScan(torch.autograd.Function):
    """The compiled kernels as one differentiable function.  All inputs contiguous; ``A`` is (E, N)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, offsets: Tensor, parents: Tensor
    ) -> tuple[Tensor, Tensor]:
        rate = A.t().contiguous()
        a = rate / math.log(2)
        y, finals, marks = _forward(x, dt, a, B, C, D, offsets, parents, True)
        copied = D.clone()  # with checkpointing the backward pass gets no parameter, which _flat would copy
        ctx.save_for_backward(x, dt, rate, a, B, C, copied, offsets, parents, marks)
        ctx.set_materialize_grads(False)
        return y, finals.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, gfinals: Tensor | None) -> tuple[Tensor | None, ...]:
        from accord.kernels import selective_scan_numba as kernels

        x, dt, rate, a, B, C, D, offsets, parents, marks = ctx.saved_tensors
        states, width = rate.shape
        groups = -(-width // (kernels.LANES * kernels.GROUP))
        gy = torch.zeros_like(x) if gy is None else gy.contiguous()
        gh = x.new_zeros(len(parents), states, width)  # the kernel adds to it
        if gfinals is not None:
            gh += gfinals.transpose(1, 2)
        gx, gdt, ga, gd = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(rate), torch.empty_like(D)
        gb, gc = x.new_zeros(groups, *B.shape), x.new_zeros(groups, *C.shape)
        arrays = map(_flat, (x, dt, rate, a, B, C, D, offsets, parents, marks, gy, gh, gx, gdt, ga, gb, gc, gd))
        kernels.parallel_for(kernels.scan_backward, *arrays, width, states, count=groups, work=2 * x.numel() * states)
        # numpy adds the groups one after another, whatever the number of threads
        gB, gC = (torch.from_numpy(g.numpy().sum(0)) for g in (gb, gc))
        return gx, gdt, ga.t(), gB, gC, gd, None, None


def _wants_gradient(inputs: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(v.requires_grad for v in inputs)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, offsets: Tensor, parents: Tensor
) -> tuple[Tensor, Tensor]:
    """y (L, E) in the dtype of ``x`` and final states (S, E, N), by the fastest scan for the device and dtype.

    Half precision is computed in float32.  Says once, as a warning, when a CPU has to do without numba.
    """
    kind = x.dtype
    if any(v.dtype in (torch.float16, torch.bfloat16) for v in (x, dt, A, B, C, D)):  # under autocast they mix
        x, dt, A, B, C, D = (v.float() for v in (x, dt, A, B, C, D))
    cuda = x.device.type == "cuda" and x.dtype is torch.float32 and _alike(x, dt, A, B, C, D)
    if cuda and _triton_found():
        from accord.kernels.selective_scan_triton import TritonScan

        inputs = [v.contiguous() for v in (x, dt, A, B, C, D)]
        y, finals = TritonScan.apply(*inputs, offsets, parents, _wants_gradient(inputs))  # type: ignore[no-untyped-call]
        return y.to(kind), finals
    if not runs_compiled(x, dt, A, B, C, D):
        y, finals = parallel_scan(x, dt, A, B, C, D, offsets, parents)
        return y.to(kind), finals
    inputs = [v.contiguous() for v in (x, dt, A, B, C, D)]
    if _wants_gradient(inputs):
        y, finals = CompiledScan.apply(*inputs, offsets, parents)  # type: ignore[no-untyped-call]
    else:
        x, dt, A, B, C, D = inputs
        y, finals, _ = _forward(x, dt, (A.t() / math.log(2)).contiguous(), B, C, D, offsets, parents, False)
        finals = finals.transpose(1, 2)
    return y.to(kind), finals


# ------------------------------------------------------------------------------------------- convolution, softplus, gate
class _CompiledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, previous: Tensor) -> Tensor:
        from accord.kernels import selective_scan_numba as kernels

        taps, y = weight[:, 0].t().contiguous(), x.new_empty(x.shape)
        ctx.save_for_backward(x, taps, bias.clone(), previous)  # a copy, as in CompiledScan
        arrays = (_rows(x), x.stride(0), *map(_flat, (taps, bias, previous, y)))
        width = x.shape[1]
        kernels.parallel_for(kernels.conv_forward, *arrays, width, count=width // kernels.LANES, work=4 * x.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        from accord.kernels import selective_scan_numba as kernels

        x, taps, bias, previous = ctx.saved_tensors
        gx, gtaps, gbias = x.new_zeros(x.shape), torch.zeros_like(taps), torch.zeros_like(bias)
        arrays = (_rows(x), x.stride(0), *map(_flat, (taps, bias, previous, gy.contiguous(), gx, gtaps, gbias)))
        width = x.shape[1]
        kernels.parallel_for(kernels.conv_backward, *arrays, width, count=width // kernels.LANES, work=8 * x.numel())
        return gx, gtaps.t()[:, None], gbias, None


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, previous: Tensor) -> Tensor:
    """``functional.selective_scan.causal_conv``, compiled where it can be."""
    if runs_compiled(x, weight, bias) and x.stride(1) == 1:
        return cast(Tensor, _CompiledConv.apply(x, weight, bias, previous))  # type: ignore[no-untyped-call]
    return functional.causal_conv(x, weight, bias, previous)


class _CompiledSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from accord.kernels import selective_scan_numba as kernels

        y = torch.empty_like(x)
        ctx.save_for_backward(x)
        kernels.parallel_for(
            kernels.softplus_forward, _flat(x), _flat(y), count=x.numel() // kernels.LANES, work=4 * x.numel()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> Tensor:
        from accord.kernels import selective_scan_numba as kernels

        (x,) = ctx.saved_tensors
        gx, arrays = torch.empty_like(x), (x, gy.contiguous())
        kernels.parallel_for(
            kernels.softplus_backward, *map(_flat, (*arrays, gx)), count=x.numel() // kernels.LANES, work=4 * x.numel()
        )
        return gx


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) of (L, E); torch's own computes one number at a time on a CPU."""
    if runs_compiled(x) and x.is_contiguous():
        return cast(Tensor, _CompiledSoftplus.apply(x))  # type: ignore[no-untyped-call]
    return F.softplus(x)


class _CompiledGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor) -> Tensor:
        from accord.kernels import selective_scan_numba as kernels

        out = torch.empty_like(y)
        ctx.save_for_backward(y, z)
        arrays = (_flat(y), _rows(z), z.stride(0), _flat(out))
        kernels.parallel_for(kernels.gate_forward, *arrays, y.shape[1], count=len(y), work=4 * y.numel())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        from accord.kernels import selective_scan_numba as kernels

        y, z = ctx.saved_tensors
        gy, gz = torch.empty_like(y), torch.empty_like(y)
        arrays = (_flat(y), _rows(z), z.stride(0), *map(_flat, (g.contiguous(), gy, gz)))
        kernels.parallel_for(kernels.gate_backward, *arrays, y.shape[1], count=len(y), work=4 * y.numel())
        return gy, gz


def gate(y: Tensor, z: Tensor) -> Tensor:
    """y SiLU(z), both (L, E)."""
    if runs_compiled(y, z) and y.is_contiguous() and z.stride(1) == 1:
        return cast(Tensor, _CompiledGate.apply(y, z))  # type: ignore[no-untyped-call]
    return y * F.silu(z)


# ------------------------------------------------------------------------------------------- one token at a time
def conv_step(xz: Tensor, window: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """(B, E) ``causal_conv`` at one new token of each row; ``window`` (B, K-1, E) is updated in place.

    xz (B, 2 E): the new inputs, and others beside them · taps (K, E) · bias (E,), as ``runs_compiled`` takes them.
    """
    from accord.kernels import selective_scan_numba as kernels

    rows, width = len(xz), len(bias)
    x = xz.new_empty(rows, width)
    kernels.conv_step(*map(_flat, (xz, window, taps, bias, x)), width, 0, rows)
    return x


def scan_step(x: Tensor, dt: Tensor, rates: Tensor, selected: Tensor, D: Tensor, xz: Tensor, state: Tensor) -> Tensor:
    """(B, E) scan and gate at one new token of each row; ``state`` (B, N, E) is updated in place.

    x, dt (B, E), dt before its softplus · rates (N, E), A log2(e) · selected (B, … + 2 N), which ends in B and C ·
    D (E,) · xz (B, 2 E), which ends in the gate; as ``runs_compiled`` takes them.  Raises TypeError for other tensors.
    """
    from accord.kernels import selective_scan_numba as kernels

    if not _alike(x, dt, rates, selected, D, xz, state):
        raise TypeError("scan_step takes ordinary tensors of one dtype")
    (states, width), y = rates.shape, torch.empty_like(x)
    arrays = map(_flat, (x, dt.contiguous(), rates, selected.contiguous(), D, xz, state, y))
    sizes = (width, states, selected.shape[1] - 2 * states)
    kernels.parallel_for(kernels.scan_step, *arrays, *sizes, count=len(x), work=x.numel() * states)
    return y
