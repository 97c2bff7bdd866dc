"""A policy's copy for sampling alone, with its matrices in bfloat16 or int8: fewer bytes to read for every token.

int8 products are those of ``kernels.int8``.  Embeddings, norms and biases are the policy's own tensors, in float32, as
are attention and the residual stream.

The copy's numbers are not the trainer's: its log-probs must be computed again by the policy before PPO uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import UserError
from accord.kernels.int8 import has_int8_products, int8_linear, to_int8
from accord.models.backbone import Backbone
from accord.models.transformer import Transformer
from accord.models.transformer_kernels import kernels_compute
from accord.models.transformer_layers import Layer
from accord.runtime.device import has_bfloat16_instructions
from accord.types import Packed

WeightDtype = Literal["bfloat16", "int8"]


class Int8Linear(nn.Module):
    """``x @ weight.T + bias`` with int8 weights (N, D), from and to float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = to_int8(weight)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, N)."""
        y = int8_linear(x.detach(), self.weight)
        return y if self.bias is None else y.add_(self.bias)


class Bfloat16Linear(nn.Module):
    """``x @ weight.T + bias`` with weights (N, D) rounded to bfloat16, from and to float32.

    Without a CPU's bfloat16 instructions the products of the rounded weights are in float32: torch's own bfloat16
    is several times slower there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded = weight.detach().bfloat16()
        self.weight = rounded if weight.device.type != "cpu" or has_bfloat16_instructions() else rounded.float()
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


class SamplingTransformer(Transformer):
    """A ``Transformer`` without gradients whose products are those of other modules; made by ``sampling_copy``."""

    head: nn.Module

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""
        return cast(Tensor, self.head(hidden))

    def has_kernels(self) -> bool:
        """As for a transformer; the products of the copy are called."""
        called = (Int8Linear, Bfloat16Linear)
        return type(self) is SamplingTransformer and kernels_compute(self.config, self.children(), called)

    @torch.no_grad()
    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        states = self.forward_plain(packed)
        return states if at is None else states[at]


def sampling_model(policy: Backbone, weights: Literal["float32", "bfloat16", "int8"]) -> Backbone:
    """The policy itself, or a copy of it as it is now with such weights."""
    return policy if weights == "float32" else sampling_copy(policy, weights)


@torch.no_grad()
def sampling_copy(policy: Backbone, weights: WeightDtype) -> SamplingTransformer:
    """A copy of the policy as it is now; another one is needed once the policy has moved.

    Raises UserError for a family without such a copy, or where this machine has no int8 products.
    """
    if type(policy) is not Transformer:
        raise UserError(
            f"sampling.weights={weights} needs a model of the Llama family that is not opened through transformers; set"
            " sampling.weights=float32."
        )
    source: Transformer = policy
    if weights == "int8" and not has_int8_products(source.embed_tokens.weight.device):
        raise UserError("sampling.weights=int8 needs a CPU with AVX2; set sampling.weights=bfloat16 or float32.")
    make: Callable[[Tensor, Tensor | None], nn.Module] = Int8Linear if weights == "int8" else Bfloat16Linear
    with torch.device("meta"):
        copy = SamplingTransformer(source.config)
    copy.embed_tokens, copy.norm = source.embed_tokens, source.norm
    for ours, theirs in zip(copy.layers, source.layers, strict=True):
        _share(cast(Layer, ours), cast(Layer, theirs), make)
    copy.head = make(source.embed_tokens.weight if source.config.tied else source.lm_head.weight, None)
    if not source.config.tied:
        del copy.lm_head
    copy.policy_vocabulary, copy.gaps = source.policy_vocabulary, source.gaps
    return copy.eval()


def _share(ours: Layer, theirs: Layer, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Norms by reference, projections by ``make``."""
    ours.input_layernorm, ours.post_attention_layernorm = theirs.input_layernorm, theirs.post_attention_layernorm
    if theirs.self_attn.qk_norm:
        ours.self_attn.q_norm, ours.self_attn.k_norm = theirs.self_attn.q_norm, theirs.self_attn.k_norm
    for block in ("self_attn", "mlp"):
        for name, linear in getattr(theirs, block).named_children():
            if isinstance(linear, nn.Linear):
                setattr(getattr(ours, block), name, make(linear.weight, linear.bias))
