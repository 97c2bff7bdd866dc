"""One token a row through a transformer of the Llama family by compiled kernels, on a CPU in float32.

Norms, rotation, attention over the cache and SwiGLU are three kernels, since dispatching the dozens of operations that
they replace takes longer than one token's work.  Matrix products are torch's for models that fit into a processor's
cache; beyond that a product of few rows is memory-bound, and torch's reaches half of the memory's speed.

Plain form: ``accord.models.transformer.Transformer.forward_plain`` of the whole text, compared in
``tests/kernels/test_decoding_numba.py``; of a product ``torch.nn.functional.linear``, in
``tests/kernels/test_decoding.py``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor

MIN_WORK_FOR_JIT = 4096  # tokens times layers; smaller jobs do not recover the time of loading the compiled kernels
EVERYTHING = 2**62  # a window longer than every text
LANES = 16
STREAMED = 2**24  # elements of a weight, or of a model, beyond which weights are read from memory for every token
FEW = range(5, 65)  # rows for which our product is then faster than MKL's; not measured against other libraries
MKL = platform.machine() in ("x86_64", "AMD64")
GROUP = 4  # prompts padded to one length

Product = Callable[[], Any]
Linear: TypeAlias = "Tensor | Callable[[Tensor], Tensor]"
"""A weight (N, K) without bias, or a function from x (B, K) to (B, N)."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a transformer with ``heads`` queries and ``kv_heads`` keys of ``head_dim`` numbers each."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One pre-norm block; the rows of q and k that a rotation pairs are adjacent."""

    attention_norm: Tensor  # (D,)
    qkv: Linear  # D to (H + 2 G) K
    q_norm: Tensor | None  # (K,)
    k_norm: Tensor | None  # (K,)
    output: Linear  # H K to D
    mlp_norm: Tensor  # (D,)
    gate_up: Linear  # D to 2 F, gate first
    down: Linear  # F to D
    window: int | None  # positions that a token sees, itself included; None for all


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A transformer without its vocabulary head."""

    sizes: Sizes
    norm_eps: float
    embedding: Tensor  # (V, D)
    layers: Sequence[DecoderLayer]
    norm: Tensor  # (D,)
    rope: Tensor  # (C, K), cosine and sine of each position and pair
    numbers: int  # of all weights, all of which a step reads


def runs_compiled(embedding: Tensor, sizes: Sizes, rows: int, steps: int) -> bool:
    """Whether the kernels support a model of these sizes, and pay for a job of ``rows`` replies of ``steps`` tokens.

    It depends on the job alone, never on what ran before, so that a resumed run is bit-exact.
    """
    return (
        rows > 1
        and rows * steps * sizes.layers >= MIN_WORK_FOR_JIT
        and embedding.device.type == "cpu"
        and embedding.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not any(size % LANES for size in (sizes.width, sizes.head_dim, sizes.mlp_width))
        and find_spec("numba") is not None
    )


def few_rows(x: Tensor, numbers: int) -> bool:
    """Whether ``product`` is the faster one for x (B, K) and weights of so many elements; depends on shapes alone."""
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
    lanes = torch.empty(-(-rows // LANES) * width * LANES).numpy()
    kernels.transpose_rows(_flat(x), lanes, rows, width)
    arrays = (lanes, _flat(weight), _flat(out), rows, width, len(weight))
    kernels.parallel_for(kernels.multiply, *arrays, count=-(-len(weight) // kernels.TILE), work=weight.numel())


def group_by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Groups of rows of similar length, each with its longest: attention over a group has little padding."""
    if lengths.device.type != "cpu" or len(lengths) < 2 * GROUP:
        return []
    order = lengths.argsort(stable=True)
    return [(rows, int(lengths[rows[-1]])) for rows in torch.split(order, GROUP)]


def to_blocks(keys: Tensor, used: int) -> Tensor:
    """Keys in the kernels' layout, in blocks of ``LANES`` tokens: (B, G, C / LANES, K, LANES) from (B, G, C, K)."""
    rows, groups, columns, width = keys.shape
    blocks = keys.new_empty(rows, groups, -(-columns // LANES), width, LANES)
    whole, rest = divmod(used, LANES)
    full = keys[:, :, : whole * LANES].reshape(rows, groups, whole, LANES, width)
    blocks[:, :, :whole] = full.transpose(3, 4)
    if rest:
        blocks[:, :, whole, :, :rest] = keys[:, :, whole * LANES : used].transpose(2, 3)
    return blocks


class Decoder:
    """The buffers and flat views for stepping a cache of so many rows.

    ``keys`` (one per layer) are in the layout of ``to_blocks``, ``values`` (B, G, C, K).  Valid while weights and cache
    keep their memory.  A row's next token is stored right after its others: no unused columns are read.
    """

    def __init__(self, weights: DecoderWeights, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        sizes, rows = weights.sizes, len(values[0])
        self.weights, self.rows, self.rope = weights, rows, weights.rope
        self.alone = torch.get_num_threads() == 1
        self.heads = (sizes.heads, sizes.kv_heads, sizes.head_dim)
        self.capacity = values[0].shape[2]
        self.x, self.normed, self.delta = (torch.empty(rows, sizes.width) for _ in range(3))
        self.mixed = torch.empty(rows, sizes.heads * sizes.head_dim)
        self.gated = torch.empty(rows, sizes.mlp_width)
        qkv = torch.empty(rows, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim)
        gate_up = torch.empty(rows, 2 * sizes.mlp_width)
        self.flat = {name: _flat(getattr(self, name)) for name in ("x", "normed", "mixed", "gated")}
        self.none = _flat(torch.empty(0))
        self.streamed = few_rows(self.x, weights.numbers)
        self.layers = []
        for layer, layer_keys, layer_values in zip(weights.layers, keys, values, strict=True):
            norms = (layer.q_norm, layer.k_norm)
            self.layers.append(
                (
                    _flat(layer.attention_norm),
                    self._product(layer.qkv, self.normed, qkv),
                    tuple(self.none if norm is None else _flat(norm) for norm in norms),
                    (_flat(layer_keys), _flat(layer_values)),
                    EVERYTHING if layer.window is None else layer.window,
                    self._product(layer.output, self.mixed, self.delta),
                    _flat(layer.mlp_norm),
                    self._product(layer.gate_up, self.normed, gate_up),
                    self._product(layer.down, self.gated, self.delta),
                )
            )
        self.last_norm = _flat(weights.norm)

    def _product(self, linear: Linear, x: Tensor, out: Tensor) -> Product:
        """A function that applies ``linear`` to the current x and returns a flat array, in ``out`` where it can."""
        if not isinstance(linear, Tensor):
            return lambda: _flat(linear(x))
        weight, numbers = linear.detach(), _flat(out)
        ours = self.streamed and weight.is_contiguous()

        def multiply() -> Any:
            if ours:
                product(x, weight, out)
            else:
                torch.mm(x, weight.t(), out=out)
            return numbers

        return multiply

    def run(self, kernel: Callable[..., None], *arguments: Any, work: int) -> None:
        """``kernel`` over all rows, on torch's number of threads where the work is large enough."""
        if self.alone:
            kernel(*arguments, 0, self.rows)
        else:
            from accord.kernels.numba_vectors import parallel_for

            parallel_for(kernel, *arguments, count=self.rows, work=work)

    def step(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) hidden states at tokens (B,), each after the ``lengths`` (B,) tokens of its row."""
        from accord.kernels import decoding_numba as kernels

        sizes, flat, eps = self.weights.sizes, self.flat, self.weights.norm_eps
        reach, before = int(lengths.max()) + 1, lengths.numpy()
        angles = _flat(self.rope.index_select(0, lengths))
        torch.index_select(self.weights.embedding.detach(), 0, tokens, out=self.x)
        delta = self.none

        def norm(delta: Any, weight: Any) -> None:
            arrays = (flat["x"], delta, weight, flat["normed"], eps, sizes.width)
            self.run(kernels.add_norm, *arrays, work=self.x.numel())

        for first_norm, qkv, norms, cached, window, output, second_norm, gate_up, down in self.layers:
            norm(delta, first_norm)
            self.run(
                kernels.attend, qkv(), angles, *norms, eps, *cached, before, self.heads, self.capacity, window,
                flat["mixed"], work=self.mixed.numel() * reach,
            )  # fmt: skip
            norm(output(), second_norm)
            self.run(kernels.swiglu, gate_up(), flat["gated"], sizes.mlp_width, work=4 * self.gated.numel())
            delta = down()
        norm(delta, self.last_norm)
        return self.normed.clone()


def _flat(tensor: Tensor) -> Any:
    """A contiguous tensor as the flat array that the kernels take."""
    return tensor.detach().view(-1).numpy()
