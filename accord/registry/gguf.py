"""GGUF files of the Llama family, for llama.cpp and for transformers (``gguf_file=``): weights, tokenizer, chat template.

In the architecture "llama" (Llama, Mistral, SmolLM2) the rows of q and k have each rotary pair adjacent, so Hugging
Face's halves are interleaved.  Qwen2 and Qwen3 keep their halves.  Norms and biases stay in
float32; a matrix whose row length is not a multiple of 32 stays in F16; with Q4_0 the embedding and the head are Q8_0, since
four bits lose too much accuracy there.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accord.errors import UserError
from accord.io.atomic import replacing
from accord.io.installation import install_command
from accord.models.generation_config import read_generation
from accord.models.hf_format import read_json, read_weights
from accord.models.transformer_config import FAMILIES, TransformerConfig
from accord.registry.export_target import name_in_gguf

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from torch import Tensor

    from accord.data.tokenizer import Tokenizer

Kind = Literal["F16", "Q8_0", "Q4_0"]
KINDS: tuple[Kind, ...] = ("F16", "Q8_0", "Q4_0")
FILE_TYPE = {"F16": 1, "Q4_0": 2, "Q8_0": 7}  # llama.cpp's "mostly"
BLOCK = 32
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"},
    **{f"self_attn.{x}_norm": f"attn_{x}_norm" for x in "qk"},
    **{f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")},
}
"""Hugging Face's names and those of GGUF, without ``model.layers.N`` and ``blk.N``."""

SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Settings of generation_config.json, and the names under ``general.sampling`` that llama.cpp reads as defaults."""

# How byte-level tokenizers split a text before merging: GGUF stores only a name.
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        "qwen2",
}  # fmt: skip


def write_gguf(folder: Path, path: Path, kind: Kind, name: str = "") -> list[str]:
    """Writes a model folder as one GGUF file; returns notes for its user.

    Raises UserError for other model families, and for features that GGUF cannot express.
    """
    from accord.data.tokenizer import Tokenizer

    config = _config(folder)
    notes: list[str] = []
    if config.rope_scaling is not None:
        notes.append("the scaled rotary frequencies are read by llama.cpp, but not by transformers.")
    if config.family == "qwen3" and config.head_dim != 128:
        notes.append(
            f"transformers opens Qwen3 from GGUF only with head dimension 128, not {config.head_dim}; llama.cpp opens it."
        )
    tokenizer = Tokenizer.open(folder)
    vocabulary = _vocabulary(folder, tokenizer, config.vocab_size, notes)
    try:
        with replacing(path) as temporary:
            writer = _writer(temporary, "llama" if config.family == "mistral" else config.family)
            _add_sizes(writer, config, kind, name or folder.name)
            _add_tokenizer(writer, tokenizer, vocabulary, config.eos_ids)
            _add_sampling(writer, read_generation(folder))
            for tensor, values, quantized in _tensors(config, read_weights(folder), kind):
                writer.add_tensor(tensor, values, raw_dtype=quantized)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}).") from None
    return notes


def _config(folder: Path) -> TransformerConfig:
    content = read_json(folder, "config.json")
    if (family := content.get("model_type")) not in FAMILIES:
        raise UserError(f"{folder}: GGUF is written for {', '.join(FAMILIES)}, not for {family!r}; use --format hf.")
    config = TransformerConfig.from_hf(content)
    if config.sliding_window is not None and config.sliding_window < config.max_positions:
        raise UserError(
            f"{folder}: a {config.family} with a sliding window cannot be expressed in GGUF for llama.cpp; use --format hf."
        )
    return config


def _writer(path: Path, architecture: str) -> gguf.GGUFWriter:
    try:
        import gguf
    except ImportError:
        raise UserError(f"GGUF needs the package gguf: {install_command('gguf')}.") from None

    class Writer(gguf.GGUFWriter):
        """Also writes an empty array: llama.cpp requires the list of merges, which may be empty."""

        def add_token_merges(self, merges: Any) -> None:
            if merges:
                super().add_token_merges(merges)
            else:
                self.add_key_value("tokenizer.ggml.merges", [], gguf.GGUFValueType.ARRAY)

        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype == gguf.GGUFValueType.ARRAY and not val:
                head = self._pack("I", vtype) if add_vtype else b""
                return bytes(head + self._pack("I", gguf.GGUFValueType.STRING) + self._pack("Q", 0))
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))

    return Writer(path, architecture)


def _add_sizes(writer: gguf.GGUFWriter, config: TransformerConfig, kind: Kind, name: str) -> None:
    writer.add_name(name_in_gguf(name))
    writer.add_type("model")
    writer.add_file_type(FILE_TYPE[kind])
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


# ------------------------------------------------------------------ weights
def gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``blk.3.ffn_up.weight``.  Raises UserError for an unknown name."""
    stem, _, suffix = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    inner = layer[2] if layer else stem
    if inner not in NAMES:
        raise UserError(f"tensor {name} has no name in GGUF; is this a model of the Llama family?")
    return f"blk.{layer[1]}.{NAMES[inner]}.{suffix}" if layer else f"{NAMES[inner]}.{suffix}"


def interleaved(x: Tensor, heads: int) -> Tensor:
    """The rows (heads · K, …) of q or k with each head's halves interleaved to adjacent rotary pairs."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _tensors(
    config: TransformerConfig, state: Mapping[str, Tensor], kind: Kind
) -> Iterator[tuple[str, np.ndarray[Any, Any], Any]]:
    """(name, values or quantized bytes, quantization type or None) of each tensor."""
    for name, x in state.items():
        if name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight"):
            continue
        x = x.float()
        if config.family in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
            x = interleaved(x, config.n_heads if ".q_proj." in name else config.n_kv_heads)
        yield gguf_name(name), *_encode(gguf_name(name), x.contiguous().numpy(), kind)
    if config.rope_scaling is not None:
        yield "rope_freqs.weight", _divisors(config), None


def _divisors(config: TransformerConfig) -> np.ndarray[Any, Any]:
    """(K/2,) divisors of the rotary frequencies in Llama 3.1's scaling."""
    import torch

    from accord.models.transformer_layers import rotation

    unscaled, scaled = (rotation(c, torch.ones(1)).angle() for c in (replace(config, rope_scaling=None), config))
    return (unscaled / scaled).flatten().float().numpy()


def _encode(name: str, x: np.ndarray[Any, Any], kind: Kind) -> tuple[np.ndarray[Any, Any], Any]:
    import gguf
    import numpy as np

    if x.ndim == 1:
        return x.astype(np.float32), None
    outer = name in ("token_embd.weight", "output.weight")
    if kind == "F16" or x.shape[1] % BLOCK:
        with np.errstate(over="ignore"):  # reported below
            half = x.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(
                f"{name}: has values that F16 cannot represent (above 65504 or not finite); use --format hf."
            )
        return half, None
    wanted = gguf.GGMLQuantizationType["Q8_0" if outer else kind]
    return gguf.quantize(x, wanted), wanted


# ------------------------------------------------------------------ tokenizer
def _vocabulary(folder: Path, tokenizer: Tokenizer, size: int, notes: list[str]) -> dict[str, Any]:
    """Tokens, types, merges and name of the pre-tokenizer for GGUF.  Appends to ``notes``."""
    content = json.loads(tokenizer._serialized())
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"{folder / 'tokenizer.json'}: only byte-level BPE and plain characters are written to GGUF, not"
            f" {'SentencePiece' if model.get('byte_fallback') else model['type']}; use --format hf."
        )
    vocabulary: dict[str, int] = model["vocab"]
    added = {token["id"]: token for token in content["added_tokens"]}
    byte_level = "ByteLevel" in json.dumps(content["pre_tokenizer"])
    if not byte_level:
        if model["merges"]:
            raise UserError(f"{folder / 'tokenizer.json'}: merges without a byte-level pre-tokenizer; use --format hf.")
        notes.append(
            "the tokenizer has single characters only; GGUF readers skip unknown ones"
            + (
                " and does not lower-case: write lower case."
                if "Lowercase" in json.dumps(content["normalizer"])
                else "."
            )
        )
    spelling = _spelling()
    texts: list[str] = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for text, i in vocabulary.items():
        texts[i], types[i] = text if byte_level else "".join(spelling[b] for b in text.encode()), NORMAL
    for i, token in added.items():
        texts[i], types[i] = token["content"], CONTROL if token["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    pre = _split_name(folder, content["pre_tokenizer"]) if byte_level else "gpt-2"
    return {"tokens": texts, "types": types, "merges": merges, "pre": pre}


def _spelling() -> list[str]:
    """GPT-2's printable character for each byte: itself where printable, else one from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in prints]
    return [chr(b) if b in prints else chr(256 + others.index(b)) for b in range(256)]


def _split_name(folder: Path, pre_tokenizer: Mapping[str, Any]) -> str:
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True) and not parts[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    pattern = parts[0].get("pattern", {}).get("Regex", "") if kinds == ["Split", "ByteLevel"] else ""
    if pattern in SPLITS:
        return SPLITS[pattern]
    raise UserError(
        f"{folder / 'tokenizer.json'}: the pre-tokenizer has no name in GGUF ({', '.join(kinds)}); use --format hf."
    )


def _add_sampling(writer: gguf.GGUFWriter, settings: Mapping[str, Any]) -> None:
    """How the model is meant to be sampled, which llama.cpp takes as its defaults; nothing for a model that is not sampled."""
    if not settings.get("do_sample"):
        return
    for key, name in SAMPLING.items():
        value = settings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if key == "top_k":
                writer.add_int32(f"general.sampling.{name}", int(value))
            else:
                writer.add_float32(f"general.sampling.{name}", float(value))


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, vocabulary: Mapping[str, Any], ends: Sequence[int]
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    if others := [end for end in ends if end != tokenizer.eos_id]:
        writer.add_eot_token_id(others[0])  # llama.cpp stops at it, too
    writer.add_pad_token_id(tokenizer.pad_id)
    if (unknown := tokenizer.specials.get("unk_token")) is not None:
        writer.add_unk_token_id(vocabulary["tokens"].index(unknown))
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
