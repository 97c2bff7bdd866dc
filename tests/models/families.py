"""Families that transformers opens as causal language models, each as a tiny random model.

``docs/models.md`` lists them; ``test_hf_families.py`` opens each one, and compares the page.
"""

from __future__ import annotations

from typing import Any

from tests.models.folders import IDS, new_model

FAST = ("llama", "mistral", "qwen2", "qwen3", "mamba")

NAMED = (
    *("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "phi", "phi3", "starcoder2", "stablelm"),
    *(
        "gemma",
        "gemma2",
        "gemma3_text",
        "recurrent_gemma",
        "llama4_text",
        "olmo2",
        "granite",
        "cohere2",
        "glm4",
        "smollm3",
    ),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"),
    *("mamba2", "falcon_mamba", "jamba", "bamba", "zamba2", "qwen3_next"),
)
"""Through transformers; tried in every run of the tests."""

MORE = (
    *("afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "codegen", "cohere", "cohere2_moe", "ctrl", "cwm"),
    *("deepseek_v2", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon_h1"),
    *("flex_olmo", "glm", "glm4_moe", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granitemoe", "granitemoehybrid"),
    *("granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe", "lfm2", "minimax", "minimax_m2"),
    *("ministral", "ministral3", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo3", "olmo_hybrid", "openai-gpt"),
    *("persimmon", "phimoe", "qwen3_5_text", "seed_oss", "vaultgemma", "xglm", "zamba"),
    *("hyperclovax", "jais2", "rwkv"),
)
"""Through transformers; tried by the slow tests."""

REFUSED = {
    "bart": "a decoder that needs an encoder's states",
    "pegasus": "a decoder that needs an encoder's states",
    "bert": "logits that are not those of its body and a head, or not causal",
    "roberta": "logits that are not those of its body and a head, or not causal",
    "modernbert-decoder": "logits that are not those of its body and a head, or not causal",
}
"""Why not."""

EVERYWHERE: dict[str, Any] = {
    **{"vocab_size": IDS, "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256, "is_decoder": True},
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim", "head_size"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "n_inner", "intermediate_size_mlp"), 48
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "rotary_dim": 4},
    **{"attention_window_size": 16, "sliding_window": 16, "linear_num_value_heads": 4},
    **dict.fromkeys(
        ("state_size", "ssm_state_size", "mamba_d_state", "linear_key_head_dim", "linear_value_head_dim"), 8
    ),
    **{
        "mamba_n_heads": 8,
        "mamba_num_heads": 8,
        "mamba_d_head": 8,
        "mamba_head_dim": 8,
        "mamba_headdim": 8,
        "mamba_d_ssm": 64,
    },
    **{"mamba_n_groups": 1, "mamba_ngroups": 1, "n_mamba_heads": 1, "mamba_chunk_size": 8, "chunk_size": 8},
    **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    **{"use_mamba_kernels": False},
}
"""Sizes under all the names that families have for them."""

PATTERN = ["mamba", "hybrid", "mamba", "hybrid"]
ZAMBA = {"num_hidden_layers": 4, "layers_block_type": PATTERN, "attention_hidden_size": 64, "attention_head_dim": 16}
LATENT = {"head_dim": 4, "num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1]},
    "xglm": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1},
    "zamba": ZAMBA,
    "zamba2": {**ZAMBA, "num_mem_blocks": 1, "n_mamba_heads": 8},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "mamba": {"intermediate_size": 64},
}


def tiny_model(family: str) -> Any:
    """A random model of the family, of some ten thousand weights."""
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[family]()
    named = default.to_dict()
    sizes = {
        name: value for name, value in EVERYWHERE.items() if name in named and not isinstance(named[name], (list, dict))
    }
    return new_model(family, **{**sizes, **SPECIAL.get(family, {})})
