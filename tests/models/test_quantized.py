"""Sampling copies: what rounding may do to the numbers, and what the copy shares with the policy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from accord.errors import UserError
from accord.kernels.int8 import has_int8_products
from accord.models.open import small_backbone
from accord.models.quantized import Bfloat16Linear, sampling_copy
from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.rollout.collect import pack_texts
from accord.rollout.generate import Decoding, generate
from accord.types import Packed

avx2 = pytest.mark.skipif(not has_int8_products(torch.device("cpu")), reason="no int8 products without AVX2")
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9), (3, 1)]


def model(**kind: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(97, 64, 2, 4, 2, 32, 96, **kind)).eval()  # type: ignore[arg-type]


def test_bfloat16_products_are_those_of_rounded_weights() -> None:
    weight, bias, x = torch.randn(24, 64), torch.randn(24), torch.randn(5, 64)
    found = Bfloat16Linear(weight, bias)(x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, x @ weight.bfloat16().float().T + bias, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("weights", [pytest.param("int8", marks=avx2), "bfloat16"])
@pytest.mark.parametrize(
    "kind", [{}, {"family": "qwen2", "qkv_bias": True, "tied": False}, {"family": "qwen3", "qk_norm": True}]
)
def test_a_copy_writes_nearly_what_the_policy_would(weights: str, kind: dict[str, object]) -> None:
    policy = model(**kind)
    copy = sampling_copy(policy, weights)  # type: ignore[arg-type]
    generation, _ = generate(copy, PROMPTS, Decoding(12, 1, 0), range(2 * len(PROMPTS)), samples=2)
    packed, chosen = pack_texts(generation.prompts, generation.responses, generation.mask)
    with torch.no_grad():
        before = packed.previous[chosen]
        exact = policy.logits(policy(packed)[before]).log_softmax(-1)
        own = copy.logits(copy(packed)[before]).log_softmax(-1)
    picked = packed.tokens[chosen][:, None]
    mismatch = (generation.logprobs[generation.mask] - exact.gather(1, picked).squeeze(1)).abs()
    assert 0 < mismatch.max() < 0.05
    tolerance = 1e-2 if weights == "int8" else 1e-3  # an input may round to the next integer
    torch.testing.assert_close(
        generation.logprobs[generation.mask], own.gather(1, picked).squeeze(1), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("weights", [pytest.param("int8", marks=avx2), "bfloat16"])
def test_a_copy_writes_under_autocast_too(weights: str) -> None:
    policy = model()
    with torch.autocast("cpu", torch.bfloat16):
        copy = sampling_copy(policy, weights)  # type: ignore[arg-type]
        generation, _ = generate(copy, PROMPTS, Decoding(12, 1, 0), range(len(PROMPTS)))
    packed, at = pack_texts(generation.prompts, generation.responses, generation.mask)
    with torch.no_grad():
        exact = policy.logits(policy(packed)[packed.previous[at]]).log_softmax(-1)
    mismatch = generation.logprobs[generation.mask] - exact.gather(1, packed.tokens[at][:, None]).squeeze(1)
    assert 0 < mismatch.abs().max() < 0.05


def test_a_copy_holds_what_the_policy_was() -> None:
    policy = model()
    copy = sampling_copy(policy, "bfloat16")
    assert not [p for n, p in copy.named_parameters() if "proj" in n]
    packed = Packed.of(PROMPTS)
    before = copy(packed)
    assert not before.requires_grad
    with torch.no_grad():
        for layer in policy.layers:
            layer.mlp.down_proj.weight.zero_()
    assert torch.equal(copy(packed), before)
    assert not torch.allclose(sampling_copy(policy, "bfloat16")(packed), before)
    assert isinstance(policy.layers[0].mlp.down_proj, nn.Linear)


def test_other_families_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"sampling[.]weights=int8 needs a model of the Llama family"):
        sampling_copy(small_backbone("mamba", 32, 1, 50, 1, 0), "int8")
