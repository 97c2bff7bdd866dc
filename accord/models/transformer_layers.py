"""The layers of the Llama family in torch operations: the reference for every fast path.

In memory q, k and v are one projection, gate and up another, and the rows of q and k are reordered so that a rotary
pair is adjacent: rotary embedding is then one complex product.

Sources: Touvron et al. 2023 (arXiv 2302.13971); RMSNorm, Zhang & Sennrich 2019; rotary embedding, Su et al. 2021;
SwiGLU, Shazeer 2020; grouped queries, Ainslie et al. 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.functional.masked import wide
from accord.functional.normalization import rms_norm
from accord.models.transformer_config import TransformerConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q (N,H,K), k and v (N,G,K) -> (N,H*K)


class RMSNorm(nn.Module):
    """``rms_norm`` with a weight of its own."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rotation(config: TransformerConfig, positions: Tensor) -> Tensor:
    """(N, 1, K/2) complex64: the rotary factor of each position (N,) and pair of dimensions."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    frequency = 1.0 / config.rope_theta ** (pairs / config.head_dim)
    if (s := config.rope_scaling) is not None:
        rotations = s.original_max_position_embeddings * frequency / (2 * math.pi)  # in the original training length
        share = ((rotations - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
        frequency = frequency * (share + (1 - share) / s.factor)
    angle = positions.float()[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle)[:, None]


def _apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotates the adjacent pairs of x (N, H, K) by ``rope`` (N, 1, K/2)."""
    pairs = torch.view_as_complex(wide(x).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; ``attend`` decides what a token can see."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        width = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv_proj = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, layer: int, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        both = self.heads + self.kv_heads
        qkv: Tensor = self.qkv_proj(x).view(len(x), -1, self.head_dim)
        qk, v = qkv.split_with_sizes([both, self.kv_heads], 1)
        if self.qk_norm:
            q, k = qk.split_with_sizes([self.heads, self.kv_heads], 1)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], 1)
        q, k = _apply_rope(qk, rope).split_with_sizes([self.heads, self.kv_heads], 1)
        return cast(Tensor, self.o_proj(attend(layer, q, k, v)))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return cast(Tensor, self.down_proj(F.silu(gate) * up))


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, layer: int, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        x = x + self.self_attn(layer, self.input_layernorm(x), rope, attend)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))
