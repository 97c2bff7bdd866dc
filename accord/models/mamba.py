"""Mamba (Gu & Dao 2023, arXiv 2312.00752) over packed texts, with the tensor names of ``MambaForCausalLM``.

A block is   x, z = in_proj(norm(u)) · x = silu(conv(x)) · dt, B, C = x_proj(x) · y = scan(x, softplus(dt_proj(dt)), …)
· u + out_proj(y * silu(z)).   The convolution and the scan follow a text across its segments, so a prompt is read once
for all its replies.  Generation stores K-1 inputs and one state per row and layer, however long the text.

Letters: ``E`` channels (d_inner), ``N`` state per channel, ``K`` taps of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accord.errors import UserError
from accord.functional.selective_scan import causal_windows
from accord.io.records import ModelConfig, check
from accord.kernels.selective_scan import (
    causal_conv,
    conv_step,
    gate,
    runs_compiled,
    scan_step,
    selective_scan,
    softplus,
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
from accord.types import Packed

DT_RANGE = (1e-3, 1e-1)  # the step sizes that training starts from
KNOWN = {
    *("vocab_size", "d_model", "n_layers", "d_state", "d_conv", "expand", "dt_rank", "norm_eps", "tied"),
    *("use_bias", "use_conv_bias", "bos_id", "eos_ids", "pad_id"),
}
"""The config fields that the compiled step implements.  A model whose config has another field does not use it."""


@dataclass(frozen=True, slots=True)
class MambaConfig:
    """The sizes of a Mamba; ``from_hf`` and ``to_hf`` translate ``config.json``."""

    vocab_size: int
    d_model: int
    n_layers: int
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int = 0  # 0: a sixteenth of d_model, rounded up
    norm_eps: float = 1e-5
    tied: bool = True
    use_bias: bool = False
    use_conv_bias: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", -(-self.d_model // 16))
        for name in ("vocab_size", "d_model", "n_layers", "d_state", "d_conv", "expand", "dt_rank"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: a Mamba needs at least 1")

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> MambaConfig:
        """From the content of ``config.json``.

        Raises UserError for another family, NeedsTransformers for a Mamba that is not implemented here.
        """
        kind = config.get("model_type")
        if kind != "mamba":
            raise UserError(f"config.json: model_type = {kind!r}, expected 'mamba'; open it with its own family")
        if config.get("hidden_act", "silu") != "silu":
            raise NeedsTransformers(f"hidden_act = {config['hidden_act']!r}")
        config = check(config, ModelConfig, "config.json", "download the file again")
        inner = config.get("expand", 2) * config["hidden_size"]
        if config.get("intermediate_size", inner) != inner:
            raise NeedsTransformers(f"intermediate_size = {config['intermediate_size']}")
        rank, eos = config.get("time_step_rank", "auto"), config.get("eos_token_id", 0)
        return cls(
            vocab_size=config["vocab_size"],
            d_model=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            d_state=config.get("state_size", 16),
            d_conv=config.get("conv_kernel", 4),
            expand=config.get("expand", 2),
            dt_rank=0 if rank == "auto" else rank,
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            tied=config.get("tie_word_embeddings", True),
            use_bias=config.get("use_bias", False),
            use_conv_bias=config.get("use_conv_bias", True),
            bos_id=config.get("bos_token_id", 0),
            eos_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),),
            pad_id=config.get("pad_token_id", 0),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a ``config.json`` that ``AutoModelForCausalLM`` understands."""
        return {
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_inner,
            "num_hidden_layers": self.n_layers,
            "state_size": self.d_state,
            "conv_kernel": self.d_conv,
            "expand": self.expand,
            "time_step_rank": self.dt_rank,
            "time_step_min": DT_RANGE[0],
            "time_step_max": DT_RANGE[1],
            "layer_norm_epsilon": self.norm_eps,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "use_bias": self.use_bias,
            "use_conv_bias": self.use_conv_bias,
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids) or None,
            "pad_token_id": self.pad_id,
            "dtype": "float32",
        }


# ------------------------------------------------------------------------------------------- cache
@dataclass(frozen=True, slots=True)
class DecodingWeights:
    """A layer's weights in the layout of a step, computed once."""

    conv: tuple[Tensor, Tensor] | None  # taps (K, E) and bias (E,); None where the convolution must be called
    rates: Tensor  # (N, E), A log2(e)
    skip: Tensor  # (E,), D


@dataclass(frozen=True, slots=True)
class MambaCache:
    """The generation state of ``B`` texts, of a constant size."""

    window: Tensor  # (layers, B, K-1, E), the last inputs of the convolution, oldest first
    state: Tensor  # (layers, B, N, E)
    weights: tuple[DecodingWeights, ...]  # one a layer

    def select(self, rows: Tensor) -> MambaCache:
        """The named rows, (B',) int64: copied, repeated or dropped, in the order given."""
        return MambaCache(self.window.index_select(1, rows), self.state.index_select(1, rows), self.weights)


# ------------------------------------------------------------------------------------------- model
class Mixer(nn.Module):
    """The selective state space layer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inner, self.rank, self.states, self.kernel = config.d_inner, config.dt_rank, config.d_state, config.d_conv
        self.known = {field.name for field in fields(config)} <= KNOWN
        self.in_proj = nn.Linear(config.d_model, 2 * inner, bias=config.use_bias)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner, bias=config.use_conv_bias)
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, self.states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, config.d_model, bias=config.use_bias)
        self._initialize(config)

    @torch.no_grad()
    def _initialize(self, config: MambaConfig) -> None:
        """As in the paper's code: dt log-uniform in DT_RANGE, the output projection divided by sqrt(layers)."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = map(math.log, DT_RANGE)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp()
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.out_proj.weight /= math.sqrt(config.n_layers)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()

    def step_weights(self) -> DecodingWeights:
        """For ``step``; without the convolution where it is not as built or the layer is unknown to the kernels."""
        conv = None
        if type(self) is Mixer and self.known and are_plain([self.conv1d], (nn.Conv1d,)):
            conv = self.conv1d.weight[:, 0].t().contiguous(), self.conv_bias().detach().clone()
        rates = (-self.A_log.exp() / math.log(2)).t().contiguous()
        return DecodingWeights(conv, rates, self.D.detach().clone())

    def conv_bias(self) -> Tensor:
        return self.D.new_zeros(self.D.shape) if self.conv1d.bias is None else self.conv1d.bias

    def forward(self, u: Tensor, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """(L, D) to (L, D), the convolution's inputs (L, E) and the final states (S, E, N), for a cache."""
        before, z = self.in_proj(u).chunk(2, -1)
        if are_plain([self.conv1d], (nn.Conv1d,)):
            x = causal_conv(before, self.conv1d.weight, self.conv_bias(), packed.previous)
        else:
            x = self._convolve(causal_windows(before, packed.previous, self.kernel))
        dt, B, C = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        dt = softplus(self.dt_proj(dt))
        y, finals = selective_scan(x, dt, -self.A_log.exp(), B, C, self.D, packed.offsets, packed.parents)
        return self.out_proj(gate(y, z)), before, finals

    def _convolve(self, windows: Tensor) -> Tensor:
        """(N, E) from windows (N, K, E), by a convolution that must be called."""
        return F.silu(self.conv1d(windows.transpose(1, 2)).squeeze(-1))

    def step(self, u: Tensor, window: Tensor, state: Tensor, weights: DecodingWeights) -> Tensor:
        """One token for each row, (B, D) to (B, D); ``window`` (B, K-1, E) and ``state`` (B, N, E) are updated in place."""
        xz = self.in_proj(u)
        conv, rates, skip = weights.conv, weights.rates, weights.skip
        if conv is not None and runs_compiled(xz, window, state, rates) and skip.shape[0] % 16 == 0:
            x = conv_step(xz, window, *conv)
            selected = self.x_proj(x)
            dt = self.dt_proj(selected[:, : self.rank])
            return self.out_proj(scan_step(x, dt, rates, selected, skip, xz, state))  # type: ignore[no-any-return]
        x, z = xz.chunk(2, -1)
        taps = torch.cat([window, x[:, None]], 1)
        window.copy_(taps[:, 1:])
        x = self._convolve(taps) if conv is None else F.silu((taps * conv[0]).sum(1) + conv[1])
        dt, B, C = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        dt = F.softplus(self.dt_proj(dt))
        state.mul_(torch.exp2(dt[:, None] * rates)).add_((dt * x)[:, None] * B[..., None])
        return self.out_proj(((state * C[..., None]).sum(1) + skip * x) * F.silu(z))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A mixer of normed inputs, added to the residual stream."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mixer = Mixer(config)

    def forward(self, h: Tensor, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """(L, D) to (L, D), and the mixer's two results for a cache."""
        out, before, finals = self.mixer(self.norm(h), packed)
        return h + out, before, finals

    def step_weights(self) -> DecodingWeights:
        """See ``Mixer.step_weights``."""
        return self.mixer.step_weights()

    def step(self, h: Tensor, window: Tensor, state: Tensor, weights: DecodingWeights) -> Tensor:
        """One token for each row, (B, D) to (B, D); see ``Mixer.step``."""
        return h + self.mixer.step(self.norm(h), window, state, weights)


class Mamba(Backbone):
    """A backbone of the Mamba family."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config, self.width, self.vocab_size = config, config.d_model, config.vocab_size
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm_f = nn.RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def _layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """See ``Backbone.forward``."""
        h = self.embeddings(packed.tokens)
        for layer in self.layers:
            h = layer(h, packed)[0]
        states: Tensor = self.norm_f(h)
        return states if at is None else states[at]

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""
        head = self.lm_head
        return F.linear(hidden, self.embeddings.weight) if head is None else cast(Tensor, head(hidden))

    @torch.no_grad()
    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, MambaCache]:
        """Reads the segments: (S, D) hidden states at their last tokens, and the cache of ``S`` rows.

        ``capacity`` is not used: the cache does not grow.  A segment with a parent is read with its whole text.
        """
        h = self.embeddings(packed.tokens)
        recent = [packed.last]
        for _ in range(self.config.d_conv - 2):
            recent.append(torch.where(recent[-1] < 0, -1, packed.previous[recent[-1]]))
        back = torch.stack(recent[::-1], 1)[:, : self.config.d_conv - 1]  # (S, K-1), oldest first, -1 before the text
        windows, states = [], []
        for layer in self._layers():
            h, before, finals = layer(h, packed)
            windows.append(torch.where(back[..., None] < 0, 0.0, before[back]))
            states.append(finals.transpose(1, 2))
        weights = tuple(layer.step_weights() for layer in self._layers())
        return self.norm_f(h[packed.last]), MambaCache(torch.stack(windows), torch.stack(states), weights)

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: MambaCache) -> Tensor:
        """Appends one token (B,) to each row of the cache, in place; (B, D) hidden states at those tokens."""
        h = self.embeddings(tokens)
        for i, layer in enumerate(self._layers()):
            h = layer.step(h, cache.window[i], cache.state[i], cache.weights[i])
        return self.norm_f(h)  # type: ignore[no-any-return]

    # --------------------------------------------------------------------------------------- folders
    def save(self, directory: str) -> None:
        """Writes ``config.json`` and ``model.safetensors`` as ``MambaForCausalLM`` reads them."""
        write_weights(directory, self.exported(self.state_dict()))
        self.save_config(directory)

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Backbone.exported``."""
        return {name if name.startswith("lm_head.") else f"backbone.{name}": x for name, x in state.items()}

    def save_config(self, directory: str) -> None:
        """Writes ``config.json``, and ``generation_config.json`` where the weights came with one."""
        write_json(directory, "config.json", self.config.to_hf())
        if self.generation:
            write_generation(directory, self.generation, {})

    @classmethod
    def open(cls, directory: str) -> Mamba:
        """The model of a Hugging Face folder, in float32.  Raises UserError for another family or misfit tensors."""
        try:
            config = MambaConfig.from_hf(read_json(directory, "config.json"))
            state = read_weights(directory)
            require_layers(config.n_layers, state)
        except NeedsTransformers:
            raise
        except UserError as error:
            place = "" if str(directory) in str(error) else f"{directory}: "
            raise UserError(f"{place}{error}") from None
        found = {}
        notes: tuple[str, ...] = ()
        embeddings = state.get("backbone.embeddings.weight", state.get("backbone.embedding.weight"))
        if config.tied and differ(state.get("lm_head.weight"), embeddings):
            config, notes = replace(config, tied=False), (HEADS_DIFFER,)
        with torch.device("meta"):  # as large as config.json says, which may be another model's
            expected = cls(config).state_dict()
        for name, tensor in state.items():
            plain = name.removeprefix("backbone.").replace("embedding.", "embeddings.")  # old folders: singular
            if not (plain == "lm_head.weight" and config.tied):
                found[plain] = tensor
        for name in sorted(expected.keys() ^ found.keys()):
            fault = "is missing" if name in expected else "has no place in this model"
            raise UserError(f"{directory}: tensor {name} {fault}; weights and config.json must be of one model")
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape:
                shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
                raise UserError(f"{directory}: tensor {name} has shape {shapes}; is config.json another model's?")
        model = cls(config)
        model.load_state_dict(found)
        model.notes = notes
        return model


def small_mamba(d_model: int, n_layers: int, vocab_size: int, eos_id: int, pad_id: int) -> Mamba:
    """A new Mamba with tied embeddings and the paper's proportions, initialized from torch's global generator."""
    return Mamba(MambaConfig(vocab_size, d_model, n_layers, eos_ids=(eos_id,), pad_id=pad_id))
