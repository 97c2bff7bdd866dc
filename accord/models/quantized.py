"""A policy's copy for sampling alone, with its matrices in bfloat16 or int8: fewer bytes to read for every token.

int8: weights with one scale a row (symmetric), inputs with one scale a token, sums in integers.  Both are turned by
the same Hadamard matrix first, in blocks of channels: that leaves their product as it is and spreads the few large
channels of a token, which would take all levels for themselves.  Weights have seven bits where the CPU lacks VNNI, or
torch's sums of pairs would overflow.  Embeddings, norms and biases are the policy's own tensors, in float32, as are
attention and the residual stream.

The copy's numbers are not the trainer's: its log-probs must be computed again by the policy before PPO uses them.
Sources: Dettmers et al. 2022 (arXiv 2208.07339), vector-wise scales; Ashkboos et al. 2024 (arXiv 2404.00456), rotation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.transformer import Layer, Transformer
from accord.runtime.device import multiplies_bfloat16
from accord.types import Packed

Weights = Literal["bfloat16", "int8"]
PIECE = 2**19  # weights that are rounded at a time: what is made on the way stays in the cache
ENGINES = ("x86", "fbgemm", "onednn")


class Int8Linear(nn.Module):
    """``x @ weight.T + bias`` with int8 weights (N, D), from and to float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach()
        self.turn = hadamard(math.gcd(weight.shape[1], 64))
        self.levels = 127 if torch.cpu._is_vnni_supported() else 63
        whole, self.scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
        step = max(1, PIECE // weight.shape[1])
        for first in range(0, len(weight), step):
            some = slice(first, first + step)
            self._round(weight[some], whole[some], self.scales[some])
        with warnings.catch_warnings():  # torch announces that its quantised tensors will go; the products need them
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch._make_per_tensor_quantized_tensor(whole, 1.0, 0)  # a scale a row is read one by one
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.bias = None if bias is None else bias.detach()

    def _round(self, rows: Tensor, whole: Tensor, scales: Tensor) -> None:
        """Some rows of the weights into their whole numbers and scales."""
        rows = self.turned(rows.float())
        torch.amax(rows.abs(), 1, out=scales).clamp_(min=1e-12).div_(self.levels)
        whole.copy_(rows.div_(scales[:, None]).round_())

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) to (N, out).  Each token is scaled to [-1, 1] first: its numbers depend on no other's size."""
        x = self.turned(x.detach())
        size = torch.linalg.vector_norm(x, math.inf, -1, keepdim=True).clamp_(min=1e-12)
        y: Tensor = torch.ops.quantized.linear_dynamic(x / size, self.packed, reduce_range=False)
        y = y.mul_(self.scales).mul_(size)
        return y if self.bias is None else y.add_(self.bias)

    def turned(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, len(self.turn)) @ self.turn).view(x.shape)


def hadamard(size: int) -> Tensor:
    """(size, size) orthogonal, of entries of one magnitude; ``size`` is a power of two."""
    turn = torch.ones(1, 1)
    while len(turn) < size:
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    return turn / math.sqrt(size)


class Bfloat16Linear(nn.Module):
    """``x @ weight.T + bias`` with weights (N, D) rounded to bfloat16, from and to float32.

    Without a CPU's bfloat16 instructions the products of the rounded weights are in float32: torch's own bfloat16
    is several times slower there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded = weight.detach().bfloat16()
        self.weight = rounded if weight.device.type != "cpu" or multiplies_bfloat16() else rounded.float()
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


class SamplingTransformer(Transformer):
    """A ``Transformer`` without gradients whose products are those of other modules; made by ``for_sampling``."""

    head: nn.Module

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""
        return cast(Tensor, self.head(hidden))

    def head_weight(self) -> Tensor | None:
        return None

    @torch.no_grad()
    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        states = self.forward_plain(packed)
        return states if at is None else states[at]


@torch.no_grad()
def for_sampling(policy: Backbone, weights: Weights) -> SamplingTransformer:
    """A copy of the policy as it is now, to be made anew when the policy has moved.

    Raises UserError for a family without such a copy, or where this machine has no int8 products.
    """
    if type(policy) is not Transformer:
        raise UserError(f"sampling.weights={weights} needs a model of the Llama family; set sampling.weights=float32.")
    source: Transformer = policy
    if weights == "int8":
        _use_engine(source.embed_tokens.weight.device)
    make: Callable[[Tensor, Tensor | None], nn.Module] = Int8Linear if weights == "int8" else Bfloat16Linear
    with torch.device("meta"):
        copy = SamplingTransformer(source.config)
    copy.embed_tokens, copy.norm = source.embed_tokens, source.norm
    for ours, theirs in zip(copy.layers, source.layers, strict=True):
        _share(cast(Layer, ours), cast(Layer, theirs), make)
    copy.head = make(source.embed_tokens.weight if source.config.tied else source.lm_head.weight, None)
    if not source.config.tied:
        del copy.lm_head
    return copy.eval()


def _share(ours: Layer, theirs: Layer, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Norms by reference; projections made anew."""
    ours.input_layernorm, ours.post_attention_layernorm = theirs.input_layernorm, theirs.post_attention_layernorm
    if theirs.self_attn.qk_norm:
        ours.self_attn.q_norm, ours.self_attn.k_norm = theirs.self_attn.q_norm, theirs.self_attn.k_norm
    for block in ("self_attn", "mlp"):
        for name, linear in getattr(theirs, block).named_children():
            if isinstance(linear, nn.Linear):
                setattr(getattr(ours, block), name, make(linear.weight, linear.bias))


def _use_engine(device: torch.device) -> None:
    """Torch's int8 kernels for x86.  Raises UserError where there are none."""
    found = [name for name in ENGINES if name in torch.backends.quantized.supported_engines]
    if device.type != "cpu" or not found:
        raise UserError("sampling.weights=int8 needs an x86 CPU; set sampling.weights=bfloat16 or float32.")
    if torch.backends.quantized.engine not in found:
        torch.backends.quantized.engine = found[0]
