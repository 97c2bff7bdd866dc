"""Whether layers are as they were built, so that a kernel may read their weights instead of calling them.

A wrapper or an adapter is another type, and so is a layer with a parametrization or an FSDP shard; a shard's parameters
are another type of tensor.  Such a layer must be called, and so must one with a hook or another ``forward``.  Global hooks on all
modules do not count: torch's own operation counters must see what runs without them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn

ORDINARY = (nn.Parameter, Tensor)


def are_plain(modules: Iterable[nn.Module], types: Collection[type[nn.Module]]) -> bool:
    """Whether the modules and all within them are exactly of the ``types`` and unchanged.

    Their parameters are ordinary tensors, of one dtype and on one device.
    """
    weights: list[Tensor] = []
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if type(module) not in types or _is_changed(module):
            return False
        weights += [weight for weight in module._parameters.values() if weight is not None]
        waiting += [child for child in module._modules.values() if child is not None]
    kinds = {(weight.dtype, weight.device) for weight in weights}
    return len(kinds) <= 1 and all(type(weight) in ORDINARY for weight in weights)


def _is_changed(module: nn.Module) -> bool:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)
