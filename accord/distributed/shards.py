"""Models over ranks: FSDP2's shards, activation checkpointing, and what reads sharded weights outside ``forward``.

Bottom-up: each layer is a unit whose weights are gathered for its own pass, and the rest of the backbone is one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import checkpoint

from accord.config.common import Parallel
from accord.distributed import mesh
from accord.models.backbone import Backbone

METHODS = ("logits", "prefill", "step", "step_weights")
"""What reads weights of a backbone or a layer outside ``forward``."""

_reshards: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Sharded modules, and whether each frees its gathered weights after its forward pass."""


def spread(models: Iterable[Backbone], settings: Parallel) -> dict[str, str]:
    """Prepares backbones, on their device, for training by all ranks, in place; returns the plan's line on it, if any.

    Call it before the optimizer is made, since the parameters of a shard are new ones.  A frozen backbone is sharded too.
    """
    mesh.at("preparing the model")
    for model in models:
        if settings.activation_checkpointing:
            _recompute(model)
        if settings.strategy == "fsdp":
            _shard(model, settings)
    found = [f"{mesh.size()} ({settings.strategy})"] if mesh.size() > 1 or settings.strategy == "fsdp" else []
    if settings.strategy == "fsdp":
        found.append("weights, gradients and optimizer state are sharded; the fast CPU passes of whole models are off")
    if settings.activation_checkpointing:
        found.append("activations are computed again in the backward pass")
    return {"processes": "; ".join(found)} if found else {}


def layers_of(model: Backbone) -> list[nn.Module]:
    """The layers, as the longest module list; none where a model has no list."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _recompute(model: Backbone) -> None:
    """Has each layer's forward pass run again in the backward pass instead of storing its activations."""
    for layer in layers_of(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _shard(model: Backbone, settings: Parallel) -> None:
    if mesh.size() == 1:
        mesh.join_alone()
    device = next(model.parameters()).device
    ranks = init_device_mesh(device.type, (mesh.size(),))
    narrow = torch.bfloat16 if settings.mixed_precision == "bfloat16" else None
    precision = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if settings.cpu_offload else OffloadPolicy()
    shard = partial(fully_shard, mesh=ranks, mp_policy=precision, offload_policy=offload)
    for unit, reshard in [*((layer, settings.reshard) for layer in layers_of(model)), (model, False)]:
        shard(unit, reshard_after_forward=reshard)
        _reshards[unit] = reshard
        for name in METHODS:
            if hasattr(unit, name):
                register_fsdp_forward_method(unit, name)


def is_sharded(model: object) -> bool:
    """Whether this is a module any part of which is sharded."""
    return isinstance(model, nn.Module) and any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every rank holds the model's whole weights: for many passes without gradients, such as a rollout.

    Every rank enters and leaves it together.  A model that is not sharded is left as it is.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(_reshards[unit], recurse=False)
