"""Log-probabilities of labels from hidden states and a plain vocabulary matrix, with one buffer of logits.

The plain form takes any head and computes entropies too; this is the case of SFT and DPO.  Cut cross-entropy by rows:
Wijmans et al. 2024 (arXiv 2411.09009) store no logits either, in a GPU's tiles.

Plain form: ``accord.functional.logprobs.token_logprobs``, compared in ``tests/kernels/test_vocabulary_head.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from accord.functional.masked import wide

CHUNK_ELEMENTS = 2**22
"""Logits computed at once: 16 MB, which fit into a processor's last-level cache; at least 64 rows."""
MAX_STORED_PROBABILITIES = 2**23
"""``label_logprobs`` stores up to this many probabilities for the backward pass; more are computed again."""


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    step = min(rows, max(64, CHUNK_ELEMENTS // vocab_size))  # matrix products of fewer rows than 64 are inefficient
    for start in range(0, rows, max(1, step)):
        yield slice(start, min(start + step, rows))


def _dtype(hidden: Tensor) -> torch.dtype:
    """Dtype of matrix multiplications: the autocast type where autocast is on."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _probabilities_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) softmax, in place of the logits (a copy where they are half), and (n,) log p(target) in float32."""
    target_logits = wide(logits.gather(-1, targets[:, None]).squeeze(-1))
    logits = wide(logits)
    top = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    total = exponentials.sum(-1, keepdim=True)
    return exponentials.div_(total), target_logits - (top + total.log()).squeeze(-1)


class _SumOfNLL(torch.autograd.Function):
    """-Σ log p(target).  The gradient is computed in the forward pass, since its weight is 1 for each label."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros((), dtype=wide(hidden[:0]).dtype, device=hidden.device)
        narrow, cast = hidden.to(dtype), weight.to(dtype)
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(narrow) if of_hidden else None
        weight_grad = torch.zeros_like(weight, memory_format=torch.contiguous_format) if of_weight else None
        for rows in _chunks(len(hidden), len(weight)):
            grad, logprob = _probabilities_(narrow[rows] @ cast.t(), targets[rows])
            total -= logprob.sum()
            if hidden_grad is None and weight_grad is None:
                continue
            grad.scatter_add_(-1, targets[rows, None], grad.new_full((len(grad), 1), -1.0))
            _add_gradients(grad.to(dtype), narrow[rows], cast, hidden_grad, weight_grad, rows)
        ctx.save_for_backward(*(x for x in (hidden_grad, weight_grad) if x is not None))
        ctx.given, ctx.dtype = (of_hidden, of_weight), hidden.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        made = list(ctx.saved_tensors)
        unit = float(grad) == 1.0  # as from ``loss.backward()``: no pass over the matrix then
        of_hidden, of_weight = (made.pop(0) if given else None for given in ctx.given)
        if of_hidden is not None:
            of_hidden = of_hidden.to(ctx.dtype) if unit else of_hidden.to(ctx.dtype) * grad
        if of_weight is not None and not unit:
            of_weight = of_weight * grad
        return of_hidden, of_weight, None, None


class _LogProbs(torch.autograd.Function):
    """(N,) log p(target); the softmax is stored where it is small, and computed again in the backward pass otherwise."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        narrow, cast = hidden.to(dtype), weight.to(dtype)
        small = len(hidden) * len(weight) <= MAX_STORED_PROBABILITIES and any(ctx.needs_input_grad)
        logprobs, stored = [], []
        for rows in _chunks(len(hidden), len(weight)):
            probabilities, logprob = _probabilities_(narrow[rows] @ cast.t(), targets[rows])
            logprobs.append(logprob)
            if small:
                stored.append(probabilities)
        ctx.save_for_backward(hidden, weight, targets, *stored)
        ctx.product = dtype
        return torch.cat(logprobs) if logprobs else wide(hidden.new_zeros(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, *stored = ctx.saved_tensors
        narrow, cast = hidden.to(ctx.product), weight.to(ctx.product)
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(narrow) if of_hidden else None
        weight_grad = torch.zeros_like(weight, memory_format=torch.contiguous_format) if of_weight else None
        for number, rows in enumerate(_chunks(len(hidden), len(weight))):
            grad = upstream[rows, None]
            probabilities = stored[number] if stored else _probabilities_(narrow[rows] @ cast.t(), targets[rows])[0]
            slope = probabilities * -grad if stored else probabilities.mul_(-grad)  # saved tensors must not change
            slope.scatter_add_(-1, targets[rows, None], grad.to(slope.dtype))
            _add_gradients(slope.to(ctx.product), narrow[rows], cast, hidden_grad, weight_grad, rows)
        return None if hidden_grad is None else hidden_grad.to(hidden.dtype), weight_grad, None, None


def _add_gradients(
    slope: Tensor, hidden: Tensor, weight: Tensor, hidden_grad: Tensor | None, weight_grad: Tensor | None, rows: slice
) -> None:
    """From the gradient of some rows' logits to that of their hidden states and of the matrix, in place."""
    if hidden_grad is not None:
        torch.mm(slope, weight, out=hidden_grad[rows])
    if weight_grad is None:
        return
    if weight_grad.dtype == slope.dtype:
        weight_grad.addmm_(slope.t(), hidden)
    else:
        weight_grad.add_(slope.t() @ hidden)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        shapes = f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes}: expected (N, D), (V, D) and (N,)")


def label_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """() -Σ log p(targets) under softmax(hidden · weightᵀ), in float32: hidden (N, D), weight (V, D), targets (N,) int64.

    Three matrix products and one buffer of at most ``CHUNK_ELEMENTS`` logits (64 rows at least), whatever N and V.
    Raises ValueError for shapes that do not fit.
    """
    _check(hidden, weight, targets)
    total: Tensor = _SumOfNLL.apply(hidden, weight, targets, _dtype(hidden))  # type: ignore[no-untyped-call]
    return total


def label_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(N,) log p(targets) under softmax(hidden · weightᵀ), in float32; shapes and errors as in ``label_nll``.

    Stores at most ``MAX_STORED_PROBABILITIES`` probabilities for the backward pass; a longer row pays a fourth matrix product.
    """
    _check(hidden, weight, targets)
    logprobs: Tensor = _LogProbs.apply(hidden, weight, targets, _dtype(hidden))  # type: ignore[no-untyped-call]
    return logprobs
