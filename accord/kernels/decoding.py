"""One token a row through compiled kernels: what a CPU in float32 runs in place of ``Transformer.step``'s operations.

Norms, rotation, attention over the cache and SwiGLU are three kernels, since one token's work in them is smaller than
the dispatch of the dozens of operations that they are made of.  Torch keeps the matrix products of models that a cache
holds; with more weights than that a product of few rows is bound by memory, and torch's reads it at half its speed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accord.models.transformer import KeyValueCache, Transformer

WORTH = 4096  # tokens times layers from which a job pays for loading the compiler
EVERYTHING = 2**62  # a window that holds every text
LANES = 16
STREAMED = 2**24  # numbers of a weight, or of a model, that come from memory for every token
FEW = range(5, 65)  # rows for which our product is quicker then, beside MKL; not measured beside other libraries
MKL = platform.machine() in ("x86_64", "AMD64")
GROUP = 4  # prompts that are read with the padding of one

Product = Callable[[], Any]


def runs_compiled(model: Transformer, rows: int, steps: int) -> bool:
    """Whether the kernels take this model, and a job of ``rows`` replies of ``steps`` tokens is worth loading them.

    It depends on the job alone and never on what ran before, so that a resumed run does what the whole one did.
    """
    config, weight = model.config, model.embed_tokens.weight
    return (
        rows > 1
        and rows * steps * config.n_layers >= WORTH
        and weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not any(size % LANES for size in (config.d_model, config.head_dim, config.d_ff))
        and find_spec("numba") is not None
    )


def few_rows(x: Tensor, numbers: int) -> bool:
    """Whether x (B, K) is better multiplied by ``product``, with weights of so many numbers: a matter of shapes alone."""
    return (
        MKL
        and len(x) in FEW
        and numbers >= STREAMED
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and find_spec("numba") is not None
    )


def product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (B, N) = x (B, K) @ weight (N, K).T, all contiguous float32."""
    from accord.kernels import decoding_numba as kernels

    rows, width = x.shape
    turned = torch.empty(-(-rows // LANES) * width * LANES).numpy()
    kernels.turn(_flat(x), turned, rows, width)
    arrays = (turned, _flat(weight), _flat(out), rows, width, len(weight))
    kernels.share(kernels.multiply, *arrays, count=-(-len(weight) // kernels.TILE), work=weight.numel())


def by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Rows in groups of like length with the longest of each: attention over a group has little padding."""
    if lengths.device.type != "cpu" or len(lengths) < 2 * GROUP:
        return []
    order = lengths.argsort(stable=True)
    return [(some, int(lengths[some[-1]])) for some in torch.split(order, GROUP)]


def lay_out(cache: KeyValueCache) -> None:
    """The cache as the kernels read it: keys in blocks of ``LANES`` tokens, (B, G, C / LANES, K, LANES)."""
    for layer, keys in enumerate(cache.keys):
        rows, groups, columns, width = keys.shape
        blocks = keys.new_empty(rows, groups, -(-columns // LANES), width, LANES)
        whole, rest = divmod(cache.used, LANES)
        known = keys[:, :, : whole * LANES].reshape(rows, groups, whole, LANES, width)
        blocks[:, :, :whole] = known.transpose(3, 4)
        if rest:
            blocks[:, :, whole, :, :rest] = keys[:, :, whole * LANES : cache.used].transpose(2, 3)
        cache.keys[layer] = blocks


class Decoder:
    """The buffers and flat views for stepping a cache of so many rows.

    Valid while the model's weights stay where they are.  Row b's next token goes to place ``cache.lengths[b]``: columns
    that another row's prompt would leave unused are not read.
    """

    def __init__(self, model: Transformer, cache: KeyValueCache, turns: Tensor) -> None:
        """``turns`` (C, K): cosine and sine of each position and pair."""
        config, rows = model.config, len(cache.lengths)
        self.model, self.rows, self.turns = model, rows, turns
        self.alone = torch.get_num_threads() == 1
        self.sizes = (config.n_heads, config.n_kv_heads, config.head_dim)
        self.capacity = cache.values[0].shape[2]
        self.x, self.normed, self.delta = (torch.empty(rows, config.d_model) for _ in range(3))
        self.mixed = torch.empty(rows, config.n_heads * config.head_dim)
        self.gated = torch.empty(rows, config.d_ff)
        qkv = torch.empty(rows, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
        gate_up = torch.empty(rows, 2 * config.d_ff)
        self.flat = {name: _flat(getattr(self, name)) for name in ("x", "normed", "mixed", "gated")}
        self.none = _flat(torch.empty(0))
        self.streamed = few_rows(self.x, sum(p.numel() for p in model.parameters()))
        self.layers = []
        for number, layer in enumerate(cast("Any", model.layers)):
            attention, mlp = layer.self_attn, layer.mlp
            norms = (attention.q_norm, attention.k_norm) if config.qk_norm else ()
            far = config.sliding_window is None or number < config.first_window_layer
            self.layers.append(
                (
                    _flat(layer.input_layernorm.weight),
                    self._product(attention.qkv_proj, self.normed, qkv),
                    tuple(_flat(norm.weight) for norm in norms) or (self.none, self.none),
                    (_flat(cache.keys[number]), _flat(cache.values[number])),
                    EVERYTHING if far else config.sliding_window,
                    self._product(attention.o_proj, self.mixed, self.delta),
                    _flat(layer.post_attention_layernorm.weight),
                    self._product(mlp.gate_up_proj, self.normed, gate_up),
                    self._product(mlp.down_proj, self.gated, self.delta),
                )
            )
        self.last_norm = _flat(model.norm.weight)

    def _product(self, linear: nn.Module, x: Tensor, out: Tensor) -> Product:
        """What computes linear(x), x being read anew at each call, and gives its numbers; ``out`` takes them where it can."""
        if (
            type(linear) is not nn.Linear
            or linear.bias is not None
            or linear._forward_hooks
            or linear._forward_pre_hooks
        ):
            return lambda: _flat(linear(x))
        weight, numbers = linear.weight.detach(), _flat(out)
        ours = self.streamed and weight.is_contiguous()

        def multiply() -> Any:
            if ours:
                product(x, weight, out)
            else:
                torch.mm(x, weight.t(), out=out)
            return numbers

        return multiply

    def run(self, kernel: Callable[..., None], *arguments: Any, work: int) -> None:
        """``kernel`` over all rows, shared among torch's threads where the work is worth it."""
        if self.alone:
            kernel(*arguments, 0, self.rows)
        else:
            from accord.kernels.selective_scan_numba import share

            share(kernel, *arguments, count=self.rows, work=work)

    def step(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) hidden states at tokens (B,), each behind the ``lengths`` (B,) tokens of its row."""
        from accord.kernels import decoding_numba as kernels

        config, flat = self.model.config, self.flat
        reach, before = int(lengths.max()) + 1, lengths.numpy()
        angles = _flat(self.turns.index_select(0, lengths))
        torch.index_select(self.model.embed_tokens.weight.detach(), 0, tokens, out=self.x)
        delta = self.none

        def norm(delta: Any, weight: Any) -> None:
            arrays = (flat["x"], delta, weight, flat["normed"], config.norm_eps, config.d_model)
            self.run(kernels.add_norm, *arrays, work=self.x.numel())

        for first_norm, qkv, norms, held, window, output, second_norm, gate_up, down in self.layers:
            norm(delta, first_norm)
            self.run(
                kernels.attend, qkv(), angles, *norms, config.norm_eps, *held, before, self.sizes, self.capacity, window,
                flat["mixed"], work=self.mixed.numel() * reach,
            )  # fmt: skip
            norm(output(), second_norm)
            self.run(kernels.swiglu, gate_up(), flat["gated"], config.d_ff, work=4 * self.gated.numel())
            delta = down()
        norm(delta, self.last_norm)
        return self.normed.clone()


def _flat(tensor: Tensor) -> Any:
    """The numbers of a contiguous tensor in one row, as the kernels take them."""
    return tensor.detach().view(-1).numpy()
