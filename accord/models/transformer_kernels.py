"""A transformer as plain tensors and sizes for the kernels, and whether they compute the same model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields

from torch import nn

from accord.kernels.decoding import DecoderLayer, Linear, Sizes
from accord.kernels.transformer_training import LayerWeights, TransformerWeights
from accord.models.plain import are_plain
from accord.models.transformer_config import TransformerConfig
from accord.models.transformer_layers import MLP, Attention, Layer, RMSNorm

LAYERS: frozenset[type[nn.Module]] = frozenset({nn.Embedding, nn.Linear, nn.ModuleList, Layer, Attention, MLP, RMSNorm})
KNOWN = {
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "qkv_bias", "qk_norm", "tied"),
    *("rope_theta", "rope_scaling", "norm_eps", "sliding_window", "first_window_layer"),
    *("family", "max_positions", "bos_id", "eos_ids", "pad_id"),  # these change no number
}
"""The config fields that the kernels implement.  A model whose config has another field does not use them."""


def supports_config(config: TransformerConfig) -> bool:
    """Whether the kernels implement every field of the config."""
    return {field.name for field in fields(config)} <= KNOWN


def kernels_compute(
    config: TransformerConfig, modules: Iterable[nn.Module], called: Collection[type[nn.Module]] = ()
) -> bool:
    """Whether the kernels compute what a model's modules do; ``called`` are types of linear layers to be called."""
    return supports_config(config) and are_plain(modules, LAYERS | {*called})


def have_no_bias(layers: Iterable[Layer]) -> bool:
    """Whether the only biases are those of q, k and v, which ``transformer_training`` supports."""
    linears = (x for layer in layers for x in (layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj))
    return all(linear.bias is None for linear in linears)


def training_weights(config: TransformerConfig, layers: Iterable[Layer]) -> TransformerWeights:
    """The layers for ``transformer_training``; their linear layers are ``nn.Linear``."""
    return TransformerWeights(
        [_training_layer(layer, _window(config, number)) for number, layer in enumerate(layers)],
        config.n_heads, config.n_kv_heads, config.head_dim, config.norm_eps,
    )  # fmt: skip


def _training_layer(layer: Layer, window: int | None) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        attention_norm=layer.input_layernorm.weight,
        qkv=attention.qkv_proj.weight,
        qkv_bias=attention.qkv_proj.bias,
        q_norm=attention.q_norm.weight if attention.qk_norm else None,
        k_norm=attention.k_norm.weight if attention.qk_norm else None,
        output=attention.o_proj.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=mlp.gate_up_proj.weight,
        down=mlp.down_proj.weight,
        window=window,
    )


def decoder_sizes(config: TransformerConfig) -> Sizes:
    """The sizes of a model for ``decoding``."""
    return Sizes(config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim, config.d_ff)


def decoder_layers(config: TransformerConfig, layers: Iterable[Layer]) -> list[DecoderLayer]:
    """The layers for ``decoding``; a linear layer that is more than its weight is passed whole, to be called."""
    return [_decoder_layer(layer, _window(config, number)) for number, layer in enumerate(layers)]


def _decoder_layer(layer: Layer, window: int | None) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderLayer(
        attention_norm=layer.input_layernorm.weight,
        qkv=_linear(attention.qkv_proj),
        q_norm=attention.q_norm.weight if attention.qk_norm else None,
        k_norm=attention.k_norm.weight if attention.qk_norm else None,
        output=_linear(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_linear(mlp.gate_up_proj),
        down=_linear(mlp.down_proj),
        window=window,
    )


def _linear(layer: nn.Module) -> Linear:
    return layer.weight if type(layer) is nn.Linear and layer.bias is None else layer


def _window(config: TransformerConfig, number: int) -> int | None:
    """The sliding window of a layer; None where it sees every token."""
    return config.sliding_window if number >= config.first_window_layer else None
