"""Gradients over ranks: averaged by DDP where weights are replicated, by FSDP where they are sharded, and clipped together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from accord.distributed import mesh
from accord.types import LossOutput

B = TypeVar("B")


class _Objective(nn.Module):
    """Evaluates objectives within DDP's ``forward``; its parameters are those that the optimizer trains."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)

    def forward(self, objective: Callable[[Any], LossOutput], micro: Any) -> LossOutput:
        return objective(micro)


class Replicas:
    """Averages the gradients of parameters that every rank holds whole; with one rank it does nothing.

    Every rank evaluates equally many micro-batches.  A parameter that some objectives do not reach is allowed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Parameters become those of rank 0.  Sharded ones are FSDP's and left alone."""
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        self._ddp: DistributedDataParallel | None = None
        if mesh.size() > 1 and whole:
            self._ddp = DistributedDataParallel(
                _Objective(whole), find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def evaluate(self, objective: Callable[[B], LossOutput], micro: B) -> LossOutput:
        """The objective of a micro-batch, so that its backward pass averages gradients."""
        return objective(micro) if self._ddp is None else cast(LossOutput, self._ddp(objective, micro))

    def accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Within it gradients stay on their rank where ``more`` micro-batches of the step follow."""
        return self._ddp.no_sync() if more and self._ddp is not None else nullcontext()


def scale(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Divides the gradients by ``factor``, shards in their place.  Raises RuntimeError where there is no gradient."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if not grads:
        raise RuntimeError("the objective reached no trained parameter")
    torch._foreach_div_(grads, factor)


def local(x: Tensor) -> Tensor:
    """A tensor's rows on this rank."""
    return x.to_local() if isinstance(x, DTensor) else x


def are_mixed(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether some are sharded and some are not, so that no operation can take them together."""
    return len({isinstance(p, DTensor) for p in parameters}) > 1


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scales gradients down to a global norm of ``max_norm``, over all ranks' shards; returns the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    shards = [local(grad) for grad in grads if isinstance(grad, DTensor)]
    if not shards:
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))
    whole = [grad for grad in grads if not isinstance(grad, DTensor)]
    squares = mesh.add(nn.utils.get_total_norm(shards).square())
    norm = float((squares + nn.utils.get_total_norm(whole).to(squares).square()).sqrt())
    torch._foreach_mul_([*shards, *whole], min(1.0, max_norm / (norm + 1e-6)))
    return norm
