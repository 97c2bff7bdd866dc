"""The Llama family's pass over packed texts for training on a CPU, with cheap intermediate results computed again.

Of each layer it stores the input, rotated q, k and v, the attention's output, and gate and up; the backward pass computes
normed inputs, padded rows and SwiGLU products again.  That is a third of what autograd stores, and less memory traffic.
Attention processes texts of similar lengths together, so that its quadratic cost does not include much padding.

Plain form: ``accord.models.transformer.Transformer.forward_plain``, by autograd alone; compared in
``tests/kernels/test_transformer_training.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from accord.functional.normalization import rms_norm
from accord.types import Packed

ALIKE = 0.85
"""A text joins the group of a longer one where it has at least this fraction of its length."""
Group = tuple[int, int, int]  # where its rows begin in the padded order, number of texts, columns

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True)
class Layout:
    """The padded rows of ``M`` places for the texts of a packed row, grouped by similar length."""

    groups: tuple[Group, ...]
    places: Tensor  # (M,) int64, the token at each place; padding repeats its text's first
    slots: Tensor  # (L,) int64, the first place of each token
    duplicates: Tensor  # (N,) int64, further places of tokens that texts share
    shared: Tensor  # (N,) int64, the tokens at those places


def layout(packed: Packed) -> Layout:
    """Places for every text of a packed row."""
    lengths = (packed.texts >= 0).sum(1)
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order].tolist()
    groups: list[Group] = []
    places, is_token = [], []
    start = first = 0
    while first < len(sizes):
        columns = sizes[first]
        last = first
        while last < len(sizes) and sizes[last] >= ALIKE * columns:
            last += 1
        texts = packed.texts[order[first:last], :columns]
        places.append(torch.where(texts >= 0, texts, texts[:, :1]).reshape(-1))
        is_token.append((texts >= 0).reshape(-1))
        groups.append((start, last - first, columns))
        start += (last - first) * columns
        first = last
    place, real = torch.cat(places), torch.cat(is_token).nonzero().squeeze(-1)
    tokens = place[real]
    slots = torch.full_like(packed.slots, start).scatter_reduce_(0, tokens, real, "amin")
    more = slots[tokens] != real
    return Layout(tuple(groups), place, slots, real[more], tokens[more])


# ------------------------------------------------------------------ pieces with a backward pass of their own
class _NormLinear(torch.autograd.Function):
    """``linear(x / rms(x) * scale)``; stores x and one number per row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps)
        inverse = rms.rsqrt_()
        ctx.save_for_backward(x, inverse, scale, weight)
        ctx.product = dtype
        normed = (x * inverse).mul_(scale).to(dtype)
        return F.linear(normed, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, scale, weight = ctx.saved_tensors
        of_x, of_scale, of_weight, of_bias = ctx.needs_input_grad[:4]
        unit = x * inverse
        scratch = unit * scale
        weight_grad = (upstream.t() @ scratch.to(ctx.product)).to(weight.dtype) if of_weight else None
        bias_grad = upstream.sum(0).to(weight.dtype) if of_bias else None
        if not (of_x or of_scale):
            return None, None, weight_grad, bias_grad, None, None
        grad = (upstream @ weight.to(ctx.product)).to(x.dtype)
        torch.mul(grad, unit, out=scratch)
        scale_grad = scratch.sum(0) if of_scale else None
        along = (scratch @ scale).div_(x.shape[-1])
        grad = grad.mul_(scale).addcmul_(unit, along[:, None], value=-1.0).mul_(inverse)
        return grad, scale_grad, weight_grad, bias_grad, None, None


class _SwiGLULinear(torch.autograd.Function):
    """``linear(silu(gate) * up)`` of gate and up side by side; stores only these."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(both, weight)
        ctx.product = dtype
        gate, up = both.chunk(2, -1)
        return F.linear(F.silu(gate).mul_(up).to(dtype), weight.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        both, weight = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        active = F.silu(gate)
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (upstream.t() @ (active * up).to(ctx.product)).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, weight_grad, None
        product = (upstream @ weight.to(ctx.product)).to(both.dtype)
        grad = torch.empty_like(both)
        gate_grad, up_grad = grad.chunk(2, -1)
        torch.mul(product, active, out=up_grad)
        torch.ops.aten.silu_backward.grad_input(product.mul_(up), gate, grad_input=gate_grad)
        return grad, weight_grad, None


@dataclass(frozen=True, slots=True)
class Heads:
    """The sizes, rotation and layout of attention."""

    heads: int
    kv_heads: int
    window: int | None  # of a sliding window, in tokens
    rope: Tensor  # (L, 1, K/2) complex, the rotation of each token
    layout: Layout

    def mask(self, columns: int, like: Tensor) -> Tensor | None:
        """(T, T) for a sliding window shorter than a row: 0 inside the window, -inf elsewhere.  None: causal."""
        if self.window is None or columns <= self.window:
            return None
        visible = torch.ones(columns, columns, dtype=torch.bool, device=like.device).tril_().triu_(1 - self.window)
        return like.new_full((columns, columns), -torch.inf).masked_fill_(visible, 0.0)


class _Attend(torch.autograd.Function):
    """(L, H*K) attention of packed q, k and v (L, H+2G, K) before rotation; stores them rotated, without padding."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: Heads) -> Tensor:
        where, both = heads.layout, heads.heads + heads.kv_heads
        rotated = torch.empty_like(qkv)
        _apply_rope(qkv[:, :both], heads.rope, rotated[:, :both])
        rotated[:, both:] = qkv[:, both:]
        rows = rotated.index_select(0, where.places)
        outputs, sums = [], []
        for group in where.groups:
            q, k, v = _split(rows, group, heads)
            mask = heads.mask(group[2], q)
            output, logsumexp = _flash(q, k, v, 0.0, mask is None, attn_mask=mask)
            outputs.append(output.transpose(1, 2).reshape(group[1] * group[2], -1))
            sums.append(logsumexp)
        output = torch.cat(outputs).index_select(0, where.slots)
        ctx.save_for_backward(rotated, output, *sums)
        ctx.heads = heads
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        rotated, output, *sums = ctx.saved_tensors
        heads: Heads = ctx.heads
        where, both = heads.layout, heads.heads + heads.kv_heads
        rows = rotated.index_select(0, where.places)
        outputs = output.index_select(0, where.places)
        padded = torch.zeros_like(outputs).index_copy_(0, where.slots, upstream)
        grads = torch.empty_like(rows)
        for group, logsumexp in zip(where.groups, sums, strict=True):
            q, k, v = _split(rows, group, heads)
            start, count, columns = group
            some = slice(start, start + count * columns)
            out, up = (x[some].view(count, columns, heads.heads, -1).transpose(1, 2) for x in (outputs, padded))
            mask = heads.mask(columns, q)
            found = _flash_backward(up, q, k, v, out, logsumexp, 0.0, mask is None, attn_mask=mask)
            for target, grad in zip(_split(grads, group, heads), found, strict=True):
                target.copy_(grad)
        grad = grads.index_select(0, where.slots)
        if len(where.duplicates):  # shared keys and values; queries have no gradient there
            grad.index_add_(0, where.shared, grads.index_select(0, where.duplicates))
        _apply_rope(grad[:, :both], heads.rope.conj(), grad[:, :both])
        return grad, None


def _apply_rope(x: Tensor, rope: Tensor, out: Tensor) -> None:
    """Rotates the adjacent pairs of x (L, H, K) by ``rope`` into ``out``, which may be x."""
    if x.dtype is torch.float32:
        pairs, target = (torch.view_as_complex(y.view(*y.shape[:-1], -1, 2)) for y in (x, out))
        torch.mul(pairs, rope, out=target)
        return
    wide = x if x.dtype is torch.float64 else x.float()
    out.copy_(torch.view_as_real(torch.view_as_complex(wide.reshape(*x.shape[:-1], -1, 2)) * rope).flatten(-2))


def _split(rows: Tensor, group: Group, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """q (R, H, T, K), k and v (R, G, T, K): views of one group's rows."""
    start, count, columns = group
    some = rows[start : start + count * columns].view(count, columns, *rows.shape[1:]).transpose(1, 2)
    q, k, v = some.split_with_sizes([heads.heads, heads.kv_heads, heads.kv_heads], 1)
    return q, k, v


# ------------------------------------------------------------------ the pass
@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One pre-norm block; the rows of q and k that a rotation pairs are adjacent."""

    attention_norm: Tensor  # (D,)
    qkv: Tensor  # ((H + 2 G) K, D)
    qkv_bias: Tensor | None  # ((H + 2 G) K,)
    q_norm: Tensor | None  # (K,)
    k_norm: Tensor | None  # (K,)
    output: Tensor  # (D, H K)
    mlp_norm: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D), gate first
    down: Tensor  # (D, F)
    window: int | None  # of a sliding window, in tokens


@dataclass(frozen=True, slots=True)
class TransformerWeights:
    """The layers of a transformer: H queries and G keys of K numbers each."""

    layers: Sequence[LayerWeights]
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float


def supports(weight: Tensor) -> bool:
    """Whether this path runs with weights like this one: on a CPU, in float32 or float64."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _norm_linear(x: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return cast(Tensor, _NormLinear.apply(x, scale, weight, bias, eps, _dtype(x)))  # type: ignore[no-untyped-call]


def _mlp(x: Tensor, layer: LayerWeights, eps: float) -> Tensor:
    both = _norm_linear(x, layer.mlp_norm, layer.gate_up, None, eps)
    return cast(Tensor, _SwiGLULinear.apply(both, layer.down, _dtype(both)))  # type: ignore[no-untyped-call]


def _attention(x: Tensor, layer: LayerWeights, heads: Heads, model: TransformerWeights) -> Tensor:
    """(L, H*K), before the output projection."""
    qkv = _norm_linear(x, layer.attention_norm, layer.qkv, layer.qkv_bias, model.norm_eps)
    qkv = qkv.view(len(x), -1, model.head_dim)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k, v = qkv.split_with_sizes([heads.heads, heads.kv_heads, heads.kv_heads], 1)
        q, k = rms_norm(q, layer.q_norm, model.norm_eps), rms_norm(k, layer.k_norm, model.norm_eps)
        qkv = torch.cat([q, k, v], 1)
    return cast(Tensor, _Attend.apply(qkv, heads))  # type: ignore[no-untyped-call]


def run_layers(x: Tensor, model: TransformerWeights, packed: Packed, rope: Tensor, at: Tensor | None = None) -> Tensor:
    """(L, D) outputs of the layers for embeddings x (L, D); with ``at`` (N,) indices into L, only those (N, D).

    ``rope`` (L, 1, K/2) complex is the rotation at the positions.  What follows the last layer's attention is computed
    at the indices only.
    """
    where, last = layout(packed), len(model.layers) - 1
    for number, layer in enumerate(model.layers):
        heads = Heads(model.heads, model.kv_heads, layer.window, rope, where)
        attended = _attention(x, layer, heads, model)
        if number == last and at is not None:
            attended, x = attended.index_select(0, at), x.index_select(0, at)
        x = x + F.linear(attended, layer.output)
        x = x + _mlp(x, layer, model.norm_eps)
    return x
