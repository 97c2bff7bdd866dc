"""The sizes and options of a Llama-family model, read from and written to Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.errors import UserError
from accord.io.records import ModelConfig, RopeParameters, check
from accord.models.hf_format import NeedsTransformers

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of the slow rotary frequencies; the names are those of ``rope_parameters``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The sizes of a model.  Raises UserError where they contradict each other."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    family: str = "llama"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tied: bool = True
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3
    max_positions: int = 2048  # what the model was trained for; rotary positions do not end there
    sliding_window: int | None = None  # a token sees this many, itself included
    first_window_layer: int = 0  # Qwen: layers below see everything
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"):
            if getattr(self, name) < 1:
                raise UserError(f"model: {name} must be at least 1, found {getattr(self, name)}")
        if self.family not in FAMILIES:
            raise UserError(f"model: family {self.family!r} is unknown; one of {', '.join(FAMILIES)}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"model: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model: head_dim must be even for rotary embedding, found {self.head_dim}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """From the content of ``config.json``, of transformers 4 or 5.

        Raises UserError naming the key that is missing, NeedsTransformers naming one that asks for what this family does
        not have here.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"config.json: model_type {family!r} is not of the Llama family ({', '.join(FAMILIES)})")
        for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if config.get(key, wanted) != wanted:
                raise NeedsTransformers(f"{key} = {config[key]!r}")
        try:
            config = check(config, ModelConfig, "config.json", "download the file again")
            width, heads = config["hidden_size"], config["num_attention_heads"]
            sizes = [config[key] for key in ("vocab_size", "num_hidden_layers", "intermediate_size")]
        except KeyError as missing:
            raise UserError(f"config.json: key {missing} is missing; download the file again") from None
        theta, scaling = _rope_from_hf(config)
        window, first = _window_from_hf(config)
        eos = config.get("eos_token_id")
        return cls(
            *(sizes[0], width, sizes[1], heads),
            n_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or (128 if family == "qwen3" else width // heads)),
            d_ff=sizes[2],
            family=family,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            max_positions=int(config.get("max_position_embeddings", 2048)),
            sliding_window=window,
            first_window_layer=first,
            bos_id=config.get("bos_token_id"),
            eos_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),),
            pad_id=config.get("pad_token_id"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of ``config.json``; transformers 4 and 5 both find their rotary keys."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_scaling is not None:
            names = RopeScaling.__dataclass_fields__
            rope |= {"rope_type": "llama3"} | {name: getattr(self.rope_scaling, name) for name in names}
        found: dict[str, Any] = {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_positions,
            "bos_token_id": self.bos_id,
            "eos_token_id": one_or_many(self.eos_ids),
            "pad_token_id": self.pad_id,
            "dtype": "float32",
        }
        if self.rope_scaling is not None:
            found["rope_scaling"] = rope
        if self.family != "llama":
            found["sliding_window"] = self.sliding_window
        if self.family.startswith("qwen"):
            found["use_sliding_window"] = self.sliding_window is not None
            found["max_window_layers"] = self.first_window_layer
        return found


def one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    return (ids[0] if len(ids) == 1 else list(ids)) if ids else None


def _rope_from_hf(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in rope.values()):
        raise NeedsTransformers("rope_parameters by type of layer")
    check(rope, RopeParameters, "config.json, rope_parameters", "download the file again")
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise NeedsTransformers("partial_rotary_factor")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise NeedsTransformers(f"rope_type {kind!r}")
    try:
        return theta, RopeScaling(*(rope[name] for name in RopeScaling.__dataclass_fields__))
    except KeyError as missing:
        raise UserError(f"config.json: rope_type 'llama3' needs the key {missing}") from None


def _window_from_hf(config: Mapping[str, Any]) -> tuple[int | None, int]:
    """The sliding window and the first layer that has one."""
    family, layers = config["model_type"], int(config["num_hidden_layers"])
    if family == "llama" or (family.startswith("qwen") and not config.get("use_sliding_window", False)):
        return None, 0
    window = config.get("sliding_window", 4096)
    first = int(config.get("max_window_layers", 28)) if family.startswith("qwen") else 0
    kinds = config.get("layer_types") if family.startswith("qwen") else None
    if kinds is not None and kinds != ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]:
        raise NeedsTransformers("layer_types that differ from max_window_layers")
    return window, first if window is not None else 0
