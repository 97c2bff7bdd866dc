"""Predicted memory of one device while a model trains, by strategy: pure functions of sizes.

A trained parameter takes 4 bytes of weight, 4 of gradient and 8 of Adam's moments, all in float32.  FSDP divides these among
the devices, and gathers the weights of a layer while the layer computes.  Activations are those that autograd stores,
measured once for each family (``ACTIVATIONS``).

Parameters, gradients and moments are exact; activations and the sum are within a factor of 1.5 of what torch counts
(``tests/training/test_memory.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from accord.config.common import Parallel
from accord.errors import UserError
from accord.models.mamba import Mamba
from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.runtime.device import memory_of
from accord.runtime.tables import as_text, make_table

LOGITS = 2**23
"""Logits and their gradients that losses hold at once."""
NAMED = {
    "1B": TransformerConfig(128_256, 2048, 16, 32, 8, 64, 8192),
    "7B": TransformerConfig(32_000, 4096, 32, 32, 32, 128, 11_008, tied=False),
    "13B": TransformerConfig(32_000, 5120, 40, 40, 40, 128, 13_824, tied=False),
}
"""The shapes of Llama 3.2 1B, and of Llama 2 7B and 13B."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model in numbers."""

    trained: int  # parameters
    frozen: int  # parameters of models beside it: a reference, a reward model
    layer: int  # parameters of its largest layer
    layers: int  # of all trained trunks together
    outside: int  # trained parameters outside the layers: embeddings, heads
    width: int
    stored: float  # floats that autograd stores for each token and layer
    vocab: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How training is laid out over devices."""

    devices: int = 1
    strategy: Literal["none", "ddp", "fsdp"] = "none"
    bfloat16: bool = False  # products, and FSDP's gathered weights
    reshard: bool = True  # FSDP frees a layer's weights after its forward pass
    cpu_offload: bool = False  # FSDP keeps shards and the optimizer's state in the computer's memory
    checkpointing: bool = False  # a layer's activations are computed again in the backward pass


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, and in the computer's memory for it."""

    weights: int
    gradients: int
    moments: int
    copies: int  # gathered weights, casts, buckets of gradients
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.moments + self.copies + self.activations


def size_of(model: nn.Module, width: int, frozen: Sequence[nn.Module] = ()) -> ModelSize:
    """The size of a trained model of hidden size ``width``, with the frozen models beside it."""
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    rest = {id(p): p.numel() for module in (model, *frozen) for p in module.parameters() if id(p) not in trained}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and any(True for _ in m.parameters())]
    blocks = [sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack]
    trunks = [m for m in model.modules() if isinstance(m, Transformer | Mamba)]
    stored = max((floats_per_token(trunk) for trunk in trunks), default=24.0 * width)
    vocab = max((trunk.vocab_size for trunk in trunks), default=0)
    count = sum(trained.values())
    layer, layers = max(blocks, default=0), max(len(blocks), 1)
    return ModelSize(count, sum(rest.values()), layer, layers, max(0, count - sum(blocks)), width, stored, vocab)


def floats_per_token(trunk: Transformer | Mamba) -> float:
    """Floats that autograd stores for each token and layer, in float32."""
    if isinstance(trunk, Mamba):
        return 10.5 * trunk.config.d_inner
    c = trunk.config
    return 5.0 * c.d_model + 5 / 3 * (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + 5.0 * c.d_ff


def named_size(name: str) -> ModelSize:
    """The size of the model 1B, 7B or 13B."""
    with torch.device("meta"):
        model = Transformer(NAMED[name])
    return size_of(model, model.width)


def predict(size: ModelSize, layout: Layout, tokens: int) -> Memory:
    """Bytes on one device that computes passes of ``tokens`` tokens; weights are never smaller than float32."""
    parts = layout.devices if layout.strategy == "fsdp" else 1
    own = -(-size.trained // parts)
    state = (4 * own + 4 * size.frozen, 4 * own, 8 * own)
    if layout.cpu_offload and layout.strategy == "fsdp":
        on_device, host = (4 * size.frozen, 0, 0), 16 * own
    else:
        on_device, host = state, 0
    return Memory(*on_device, _copies(size, layout), _activations(size, layout, tokens), host)


def _copies(size: ModelSize, layout: Layout) -> int:
    """Bytes of weights and gradients that exist twice."""
    narrow = 2 if layout.bfloat16 else 4
    if layout.strategy == "fsdp":
        if layout.devices == 1 and not layout.bfloat16 and not layout.cpu_offload:
            return 0
        layers = size.trained - size.outside if not layout.reshard else min(2, size.layers) * size.layer
        gathered = narrow * (size.outside + layers)
        reduced = (narrow + 4) * max(size.layer, size.outside)  # whole gradients, and what reduce-scatter reads
        return gathered + reduced
    casts = 2 * size.trained if layout.bfloat16 else 0  # autocast's, until the backward pass has read them
    return casts


def _activations(size: ModelSize, layout: Layout, tokens: int) -> int:
    stored = 4 * size.stored * (0.6 if layout.bfloat16 else 1.0)
    inputs = 4 * size.width * size.layers  # with checkpointing, a layer is stored whole only while it is computed again
    in_layers = tokens * (inputs + stored if layout.checkpointing else stored * size.layers)
    return int(in_layers) + 4 * min(LOGITS, 2 * tokens * size.vocab)


def layout_of(parallel: Parallel, bfloat16: bool) -> Layout:
    """The layout that a config asks for."""
    return Layout(
        parallel.nproc,
        "fsdp" if parallel.strategy == "fsdp" else "ddp" if parallel.nproc > 1 else "none",
        bfloat16 or parallel.mixed_precision == "bfloat16",
        parallel.reshard,
        parallel.cpu_offload,
        parallel.activation_checkpointing,
    )


def require_memory(size: ModelSize, layout: Layout, device: torch.device) -> None:
    """Raises UserError where weights, gradients and moments, whose bytes are exact, do not fit into the device's memory."""
    known = memory_of(device)
    if known is None:
        return
    memory = predict(size, layout, 0)
    on_device = memory.weights + memory.gradients + memory.moments
    if device.type == "cpu":  # its processes share it
        on_device = (on_device + memory.host) * layout.devices
    if on_device > known:
        raise UserError(
            f"the model does not fit: weights, gradients and optimizer state take {on_device / 2**30:,.1f} GiB of"
            f" {'memory' if device.type == 'cpu' else 'device memory'}, and there are {known / 2**30:,.1f}; use"
            " parallel.strategy=fsdp on more devices, parallel.cpu_offload=true, or a smaller model (--dry-run compares)."
        )


# ------------------------------------------------------------------------------------- tables
def layouts(devices: int, bfloat16: bool) -> dict[str, Layout]:
    """The layouts worth comparing, by what a user would type after ``parallel.``."""
    fsdp = Layout(devices, "fsdp", bfloat16)
    return {
        "one device": Layout(bfloat16=bfloat16),
        "one device, activation_checkpointing": Layout(bfloat16=bfloat16, checkpointing=True),
        "ddp": Layout(devices, "ddp", bfloat16),
        "fsdp, reshard=false": replace(fsdp, reshard=False),
        "fsdp": fsdp,
        "fsdp, mixed_precision": replace(fsdp, bfloat16=True),
        "fsdp, activation_checkpointing": replace(fsdp, checkpointing=True),
        "fsdp, activation_checkpointing, cpu_offload": replace(fsdp, checkpointing=True, cpu_offload=True),
    }


def memory_table(size: ModelSize, configured: Layout, tokens: int) -> str:
    """GiB of one device by layout, for a model, and for trained Llamas of 1B, 7B and 13B beside no other model.

    Layouts of several devices have those of the configured one, or 8 where that is one device.
    """
    devices = configured.devices if configured.devices > 1 else 8
    sizes = {"this model": size, **{name: named_size(name) for name in NAMED}}
    rows = [
        (f"  {name}", *(gib(predict(each, layout, tokens)) for each in sizes.values()))
        for name, layout in {"as configured": configured, **layouts(devices, configured.bfloat16)}.items()
    ]
    words = f"predicted memory of each device in GiB, for passes of {tokens:,} tokens a device; ddp and fsdp on {devices} devices"
    return f"{words}\n{as_text(make_table(['', *sizes], rows))}"


def gib(memory: Memory) -> str:
    """GiB on the device, and where there is any, in the computer's memory for it."""
    host = f" + {memory.host / 2**30:.3g} on the host" if memory.host else ""
    return f"{memory.total / 2**30:.3g}{host}"
