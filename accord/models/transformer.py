"""The Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM2 …) over packed texts, in the Hugging Face layout on disk.

Linear layers run on the ``L`` packed tokens, so a shared prompt is computed once and padding never; only attention
gathers its rows.  Rows are padded on the right, where a causal mask already hides them.

In memory projections are fused and rotary pairs adjacent (``transformer_layers``); ``unfuse`` undoes that for the folder.
Training and generation on a CPU run in kernels where every layer is as it was built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import UserError
from accord.kernels import transformer_training
from accord.kernels.decoding import (
    Decoder,
    DecoderWeights,
    few_rows,
    group_by_length,
    product,
    runs_compiled,
    to_blocks,
)
from accord.models.backbone import Backbone
from accord.models.generation_config import write_generation
from accord.models.hf_format import (
    HEADS_DIFFER,
    NeedsTransformers,
    differ,
    read_json,
    read_weights,
    require_layers,
    write_json,
    write_weights,
)
from accord.models.plain import are_plain
from accord.models.transformer_config import TransformerConfig, one_or_many
from accord.models.transformer_kernels import (
    decoder_layers,
    decoder_sizes,
    have_no_bias,
    kernels_compute,
    supports_config,
    training_weights,
)
from accord.models.transformer_layers import Attend, Layer, RMSNorm, rotation
from accord.types import Packed


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of ``B`` texts, one column a token; a prompt shorter than the longest leaves columns unused.

    Every step fills the same column in all rows, so that it is one slice; ``positions`` gives the position of each column's token.
    """

    positions: Tensor  # (B, C) int64, the position in its text of each column's token, -1 for none
    lengths: Tensor  # (B,) int64, tokens in each text
    used: int  # columns filled so far, of C
    keys: list[Tensor] = field(default_factory=list)  # per layer (B, G, C, K), already rotated
    values: list[Tensor] = field(default_factory=list)  # per layer (B, G, C, K)
    compiled: bool | None = None  # whether steps run in compiled kernels, in their layout; the first step decides
    decoder: Decoder | None = None

    def select(self, rows: Tensor) -> KeyValueCache:
        """See ``Cache.select``.  Copies the columns in use."""
        keys = [_select(x, rows, self.used) for x in self.keys]
        values = [_select(x, rows, self.used) for x in self.values]
        return KeyValueCache(self.positions[rows], self.lengths[rows], self.used, keys, values, self.compiled)


def _select(x: Tensor, rows: Tensor, used: int) -> Tensor:
    selected = x.new_empty(len(rows), *x.shape[1:])
    selected[:, :, :used] = x[:, :, :used].index_select(0, rows)
    return selected


class Transformer(Backbone):
    """A backbone of the Llama family.

    New weights are N(0, 0.02²), those that write into the residual stream N(0, 0.02² / (2 · layers)) as in GPT-2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.width, self.vocab_size = config, config.d_model, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif "norm" not in name:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02)

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """See ``Backbone.forward``; the last layer is computed no further than ``at`` needs."""
        blocks = cast("list[Layer]", list(self.layers))
        if self.has_kernels() and transformer_training.supports(self.embed_tokens.weight) and have_no_bias(blocks):
            rope, weights = rotation(self.config, packed.positions), training_weights(self.config, blocks)
            x = transformer_training.run_layers(self.embed_tokens(packed.tokens), weights, packed, rope, at)
            return cast(Tensor, self.norm(x))
        states = self.forward_plain(packed)
        return states if at is None else states[at]

    def has_kernels(self) -> bool:
        """Whether the kernels compute this model: all layers as built, and no subclass that they do not know."""
        return type(self) is Transformer and kernels_compute(self.config, self.children())

    def head_weight(self) -> Tensor | None:
        """(V, D) where ``logits`` is a product with this matrix alone; None where the head is not as it was built."""
        if type(self) is not Transformer or not supports_config(self.config):
            return None
        head = self.embed_tokens if self.config.tied else self.lm_head
        biased = isinstance(head, nn.Linear) and head.bias is not None
        return None if biased or not are_plain([head], (nn.Embedding, nn.Linear)) else head.weight

    def forward_plain(self, packed: Packed) -> Tensor:
        """(L, D) ``forward`` in torch operations on every device: the reference that the CPU kernels are tested against."""
        rows, columns = packed.texts.shape
        places = _places(packed)
        window = self._window(columns, packed.texts.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (_to_rows(x, places, rows) for x in (q, k, v))
            return _causal(q, k, v, self._mask(layer, window)).index_select(0, packed.slots)

        return cast(Tensor, self.norm(self._layers(packed.tokens, packed.positions, attend)))

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""
        weight = self.head_weight()
        if weight is not None and few_rows(hidden, weight.numel()) and weight.is_contiguous():
            out = hidden.new_empty(len(hidden), len(weight))
            product(hidden.contiguous(), weight, out)
            return out
        return F.linear(hidden, self.embed_tokens.weight) if self.config.tied else cast(Tensor, self.lm_head(hidden))

    @torch.no_grad()
    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, KeyValueCache]:
        """See ``Backbone.prefill``; without gradients."""
        if bool((packed.parents >= 0).any()):
            raise ValueError("prefill reads prompts: segments without parents")
        rows, columns = packed.texts.shape
        places = _places(packed)
        window = self._window(columns, packed.texts.device)
        order = torch.arange(columns, device=packed.texts.device)
        positions = torch.where(packed.texts >= 0, order, -1)
        cache = KeyValueCache(F.pad(positions, (0, capacity), value=-1), packed.offsets.diff(), columns)
        groups = group_by_length(cache.lengths)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (_to_rows(x, places, rows) for x in (q, k, v))
            for x, cached in ((k, cache.keys), (v, cache.values)):
                room = x.new_empty(*x.shape[:2], columns + capacity, x.shape[3])
                room[:, :, :columns] = x
                cached.append(room)
            if len(groups) > 1 and (mask := self._mask(layer, window)) is None:
                out = q.new_empty(rows, columns, q.shape[1] * q.shape[3])
                for some, size in groups:
                    near_q, near_k, near_v = (x[some, :, :size] for x in (q, k, v))
                    out[some, :size] = _causal(near_q, near_k, near_v, mask).view(len(some), size, -1)
                return out.flatten(0, 1).index_select(0, packed.slots)
            return _causal(q, k, v, self._mask(layer, window)).index_select(0, packed.slots)

        x = self._layers(packed.tokens, packed.positions, attend)
        return cast(Tensor, self.norm(x.index_select(0, packed.last))), cache

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """See ``Backbone.step``; without gradients.  Raises ValueError where the cache is full."""
        column, end = cache.used, cache.used + 1
        if end > cache.positions.shape[1]:
            raise ValueError(f"the cache is full: it was made for {cache.positions.shape[1]} columns")
        positions = cache.lengths
        cache.positions[:, column] = positions
        if cache.compiled is None:
            cache.compiled = self._runs_compiled(len(tokens), cache.positions.shape[1] - column)
            if cache.compiled:
                for layer, keys in enumerate(cache.keys):
                    cache.keys[layer] = to_blocks(keys, column)
        if cache.compiled:
            if cache.decoder is None:
                cache.decoder = Decoder(self._decoder_weights(cache.positions.shape[1]), cache.keys, cache.values)
            hidden = cache.decoder.step(tokens, positions)
        else:
            hidden = self._step(tokens, positions, cache)
        cache.lengths, cache.used = cache.lengths + 1, end
        return hidden

    def _runs_compiled(self, rows: int, steps: int) -> bool:
        if not self.has_kernels():
            return False
        return runs_compiled(self.embed_tokens.weight, decoder_sizes(self.config), rows, steps)

    def _decoder_weights(self, columns: int) -> DecoderWeights:
        """The compiled kernels' weights, for texts of up to ``columns`` tokens."""
        rope = torch.view_as_real(rotation(self.config, torch.arange(columns))).flatten(1)
        return DecoderWeights(
            decoder_sizes(self.config),
            self.config.norm_eps,
            self.embed_tokens.weight,
            decoder_layers(self.config, cast("list[Layer]", list(self.layers))),
            self.norm.weight,
            rope,
            sum(weight.numel() for weight in self.parameters()),
        )

    def _step(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """(B, D): a step in torch's operations, on any device and in any precision."""
        column, end = cache.used, cache.used + 1
        key_positions = cache.positions[:, None, None, :end]
        visible = key_positions >= 0
        in_window = visible
        if (size := self.config.sliding_window) is not None:
            in_window = visible & (key_positions > positions[:, None, None, None] - size)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.keys[layer][:, :, column] = k
            cache.values[layer][:, :, column] = v
            # Queries of one group share their keys as if they were positions: no head is repeated.
            grouped = q.reshape(len(q), k.shape[1], -1, q.shape[2])
            keys, values = cache.keys[layer][:, :, :end], cache.values[layer][:, :, :end]
            mask = in_window if layer >= self.config.first_window_layer else visible
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).flatten(1)

        return cast(Tensor, self.norm(self._layers(tokens, positions, attend)))

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        x = self.embed_tokens(tokens)
        rope = rotation(self.config, positions)
        for number, layer in enumerate(self.layers):
            x = layer(number, x, rope, attend)
        return cast(Tensor, x)

    def _window(self, columns: int, device: torch.device) -> Tensor | None:
        """(T, T) bool, true inside the sliding window; None where the window is longer than every text."""
        if (size := self.config.sliding_window) is None or columns <= size:
            return None
        everywhere = torch.ones(columns, columns, dtype=torch.bool, device=device)
        return everywhere.tril().triu(1 - size)

    def _mask(self, layer: int, window: Tensor | None) -> Tensor | None:
        return window if layer >= self.config.first_window_layer else None

    @classmethod
    def from_state(cls, config: TransformerConfig, state: Mapping[str, Tensor]) -> Transformer:
        """A float32 model with copies of the tensors of ``state``, named as Hugging Face names them.

        A head that differs from the embeddings is not tied to them, whatever the config says, as in transformers.
        Raises UserError naming a tensor that is missing, unexpected or of another shape.
        """
        require_layers(config.n_layers, state)
        untied = config.tied and differ(state.get("lm_head.weight"), state.get("model.embed_tokens.weight"))
        config = replace(config, tied=False) if untied else config
        with torch.device("meta"):
            model = cls(config)
        wanted = unfuse(config, model.state_dict())
        spare = {"lm_head.weight"} if config.tied else set()
        given = {n: x for n, x in state.items() if n not in spare and not n.endswith("rotary_emb.inv_freq")}
        for name in [*wanted, *given]:
            if name not in given:
                raise UserError(f"model weights: tensor {name} is missing; is config.json of another model?")
            if name not in wanted:
                raise UserError(f"model weights: tensor {name} is unexpected in the {config.family} family")
            if given[name].shape != wanted[name].shape:
                found, asked = tuple(given[name].shape), tuple(wanted[name].shape)
                raise UserError(f"model weights: {name} has shape {found}, config.json asks for {asked}")
        copies = {n: x.detach().to(torch.float32, copy=True) for n, x in given.items()}
        model.load_state_dict(fuse(config, copies), assign=True)
        model.notes = (HEADS_DIFFER,) if untied else ()
        return model

    @classmethod
    def open(cls, directory: str | Path) -> Transformer:
        """Opens a Hugging Face folder, in float32 on the CPU.

        Raises UserError naming the file and the fault, NeedsTransformers where the folder's config needs more than is here.
        """
        try:
            config = TransformerConfig.from_hf(read_json(directory, "config.json"))
            return cls.from_state(config, read_weights(directory))
        except NeedsTransformers:
            raise
        except UserError as error:
            place = "" if str(directory) in str(error) else f"{directory}: "
            raise UserError(f"{place}{error}") from None

    def save(self, directory: str | Path) -> None:
        """Writes config.json, generation_config.json and model.safetensors; transformers gives the same logits.

        A tied head is left out of the file: transformers ties it again.
        """
        write_weights(directory, self.exported(self.state_dict()))
        self.save_config(str(directory))

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Backbone.exported``."""
        return unfuse(self.config, state)

    def save_config(self, directory: str) -> None:
        """Writes config.json and generation_config.json."""
        config = self.config
        eos = one_or_many(config.eos_ids)
        ids = {"bos_token_id": config.bos_id, "eos_token_id": eos, "pad_token_id": config.pad_id}
        dtype = str(self.embed_tokens.weight.dtype).removeprefix("torch.")
        write_generation(directory, self.generation, ids)
        write_json(directory, "config.json", config.to_hf() | {"dtype": dtype})


def _places(packed: Packed) -> Tensor:
    """(R*T,) the token at each place of the rows; padding repeats its own text, so that no NaN crosses texts."""
    return torch.where(packed.texts >= 0, packed.texts, packed.texts[:, :1]).reshape(-1)


def _to_rows(x: Tensor, places: Tensor, rows: int) -> Tensor:
    """(R, H, T, K) from packed (L, H, K)."""
    return x.index_select(0, places).view(rows, -1, *x.shape[1:]).transpose(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(R*T, H*K) from rows (R, H, T, K); no mask means causal."""
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _pairs_adjacent(x: Tensor, head_dim: int) -> Tensor:
    """Reorders the rows of each head from (first halves, second halves) to pairs (first, second)."""
    return x.reshape(-1, 2, head_dim // 2, *x.shape[1:]).transpose(1, 2).flatten(0, 2)


def _pairs_apart(x: Tensor, head_dim: int) -> Tensor:
    """The inverse of ``_pairs_adjacent``."""
    return x.reshape(-1, head_dim // 2, 2, *x.shape[1:]).transpose(1, 2).flatten(0, 2)


def fuse(config: TransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of ``Transformer.state_dict`` from those of the Hugging Face folder."""
    fused: dict[str, Tensor] = {}
    for name, x in state.items():
        name = name.removeprefix("model.")
        if ".q_proj." in name:
            k, v = (state["model." + name.replace(".q_proj.", f".{other}_proj.")] for other in "kv")
            parts = [_pairs_adjacent(x, config.head_dim), _pairs_adjacent(k, config.head_dim), v]
            fused[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
        elif ".gate_proj." in name:
            up = state["model." + name.replace(".gate_proj.", ".up_proj.")]
            fused[name.replace(".gate_proj.", ".gate_up_proj.")] = torch.cat([x, up])
        elif ".q_norm." in name or ".k_norm." in name:
            fused[name] = _pairs_adjacent(x, config.head_dim)
        elif not any(part in name for part in (".k_proj.", ".v_proj.", ".up_proj.")):
            fused[name] = x
    return fused


def unfuse(config: TransformerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``fuse``: weights (or their gradients) under their Hugging Face names."""
    plain: dict[str, Tensor] = {}
    for ours, x in state.items():
        name = ours if ours.startswith("lm_head.") else "model." + ours
        if ".qkv_proj." in name:
            sizes = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
            q, k, v = x.split_with_sizes(sizes)
            q, k = _pairs_apart(q, config.head_dim), _pairs_apart(k, config.head_dim)
            plain |= {name.replace(".qkv_proj.", f".{part}_proj."): y for part, y in zip("qkv", (q, k, v), strict=True)}
        elif ".gate_up_proj." in name:
            gate, up = x.chunk(2)
            plain |= {name.replace(".gate_up_", ".gate_"): gate, name.replace(".gate_up_", ".up_"): up}
        elif ".q_norm." in name or ".k_norm." in name:
            plain[name] = _pairs_apart(x, config.head_dim)
        else:
            plain[name] = x
    return plain


def small_transformer(d_model: int, n_layers: int, vocab_size: int, eos_id: int, pad_id: int) -> Transformer:
    """An untrained Llama: heads of 32 (64 from a width of 512), d_ff = 8/3 d_model rounded up to 32, tied embeddings."""
    head_dim = 64 if d_model >= 512 and d_model % 64 == 0 else 32
    if d_model < 32 or d_model % head_dim:
        raise UserError(f"model: d_model must be a multiple of {head_dim}, found {d_model}")
    heads = d_model // head_dim
    d_ff = -(-8 * d_model // 96) * 32
    sizes = (vocab_size, d_model, n_layers, heads, heads, head_dim, d_ff)
    return Transformer(TransformerConfig(*sizes, eos_ids=(eos_id,), pad_id=pad_id))
