"""Models of the fast families whose config asks for more than the fast code has: transformers' logits, also token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accord.models.hf import CausalLM
from accord.models.mamba import Mamba
from accord.models.open import open_backbone
from accord.models.transformer import Transformer
from accord.rollout.generate import Decoding, generate
from accord.types import Packed
from tests.models.folders import IDS, LLAMA, new_model, own_logits, save, texts

QWEN = {**LLAMA, "head_dim": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4, "factor": 2.0}
MAMBA = {"vocab_size": IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}

SLOWER = {
    "attention bias": ("llama", {"attention_bias": True}, "attention_bias = True"),
    "MLP bias": ("llama", {"mlp_bias": True}, "mlp_bias = True"),
    "gelu": ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "gelu in Mistral": ("mistral", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act = 'gelu_pytorch_tanh'"),
    "gelu in Qwen2": ("qwen2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'linear'"),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'dynamic'"),
    "yarn": ("llama", {"rope_parameters": YARN}, "rope_type 'yarn'"),
    "yarn in Qwen2": ("qwen2", {"rope_parameters": YARN}, "rope_type 'yarn'"),
    "yarn in Mistral": ("mistral", {"rope_parameters": YARN}, "rope_type 'yarn'"),
    "longrope": ("llama", {"rope_parameters": LONG, "original_max_position_embeddings": 32}, "rope_type 'longrope'"),
    "partial rotary": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "attention bias in Qwen3": ("qwen3", {"attention_bias": True}, "attention_bias = True"),
    "mixed windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        "layer_types that differ from max_window_layers",
    ),
    "gelu in Mamba": ("mamba", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    "width of Mamba": ("mamba", {"intermediate_size": 48}, "intermediate_size = 48"),
}  # fmt: skip

FAST = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "head_dim": ("llama", {"head_dim": 16}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0},
                **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
            }
        },
    ),
    "window": ("mistral", {"sliding_window": 4}),
    "biases of queries": ("qwen2", {}),
    "window of upper layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "norms of queries": ("qwen3", {}),
    "mamba": ("mamba", {}),
    "biases of Mamba": ("mamba", {"use_bias": True, "use_conv_bias": False}),
}


def sizes(family: str) -> dict[str, Any]:
    return {"mamba": MAMBA, "qwen3": QWEN}.get(family, LLAMA)


@torch.no_grad()
def require_equal(folder: str, model: Any, kind: type) -> Any:
    """Opens the folder; logits, and greedy replies token by token, must be those of transformers."""
    backbone = open_backbone(folder)
    assert type(backbone) is kind
    some = texts(11, 3, 8)
    torch.testing.assert_close(
        backbone.logits(backbone(Packed.of(some))), own_logits(model, some), rtol=2e-4, atol=2e-4
    )
    assert own_logits(model, some).std() > 0.1
    decoding = Decoding(max_new_tokens=6, eos_id=-1, pad_id=256, temperature=0.0)
    replies = generate(backbone, some, decoding, [1, 2, 3])[0].reply_tokens()
    for text, reply in zip(some, replies, strict=True):
        given = torch.tensor([text])
        own = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=6,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
        )
        assert own[0, len(text) :].tolist() == reply
    return backbone


@pytest.mark.parametrize("variant", SLOWER)
def test_what_the_fast_code_lacks_goes_through_transformers(variant: str, tmp_path: Path) -> None:
    family, change, why = SLOWER[variant]
    model = new_model(family, **{**sizes(family), **change})
    backbone = require_equal(save(model, tmp_path), model, CausalLM)
    said = "opened through transformers, which is correct and slower than the Llama and Mamba families, since its config.json"
    assert backbone.notes == (f"{said} asks for {why}",)


@pytest.mark.parametrize("variant", FAST)
def test_what_the_fast_code_has_stays_fast(variant: str, tmp_path: Path) -> None:
    family, change = FAST[variant]
    model = new_model(family, **{**sizes(family), **change})
    backbone = require_equal(save(model, tmp_path), model, Mamba if family == "mamba" else Transformer)
    assert backbone.notes == ()


@pytest.mark.parametrize(
    ("rope", "end"), [({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64), (LONG, 32), (YARN, None)]
)
def test_frequencies_that_depend_on_the_length_of_the_text_end_texts(
    rope: dict, end: int | None, tmp_path: Path
) -> None:
    """Beyond, the state at a token would depend on what follows it, and old log-probs on the length of the reply."""
    more = {"original_max_position_embeddings": 32} if rope is LONG else {}
    model = new_model("llama", **{**LLAMA, "rope_parameters": rope, **more})
    assert CausalLM(model).max_positions == end
    some = texts(80 if end is None else end)
    longer = [[*some[0], *texts(40, seed=1)[0]]]
    agree = torch.allclose(own_logits(model, some), own_logits(model, longer)[: len(some[0])], rtol=1e-3, atol=1e-3)
    assert agree is (end is None)
