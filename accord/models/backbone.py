"""``Backbone``: the ``nn.Module`` base class of every language model here, and its cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

from torch import Tensor, nn

from accord.types import Packed


class Cache(Protocol):
    """The generation state of ``B`` texts."""

    def select(self, rows: Tensor) -> Cache:
        """A cache of the named rows, (B',) int64: copies, repeats or drops, in the order given."""
        ...


class Backbone(nn.Module, ABC):
    """A causal language model whose hidden states and vocabulary head can be computed separately.

    Call it, so that hooks (DDP, FSDP) run.  Dropout is absent.  All hidden states are those after the final norm.
    """

    width: int
    vocab_size: int
    generation: Mapping[str, Any] = MappingProxyType({})
    """The settings of the ``generation_config.json`` that came with the weights, written again beside them."""
    max_positions: int | None = None
    """The number of positions that have an embedding; None where positions have none, and texts may be of any length."""

    def __call__(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """``forward``, with the hooks of ``nn.Module``."""
        return cast(Tensor, super().__call__(packed, at))

    @abstractmethod
    def forward(self, packed: Packed, at: Tensor | None = None) -> Tensor:
        """(L, D) hidden states, or those at the indices ``at`` (N,) into the packed row, (N, D).

        The state at token t depends on t and the tokens before it in its text, on nothing else.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""

    def head_weight(self) -> Tensor | None:
        """(V, D) where ``logits`` is a product with this matrix alone, for losses that store no logits; else None."""
        return None

    @abstractmethod
    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, Cache]:
        """Reads ``S`` prompts (segments without parents): the hidden state at each last token, (S, D), and their cache.

        ``capacity`` is the number of tokens that ``step`` may add.
        """

    @abstractmethod
    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Appends one token (B,) to each row of the cache, in place; (B, D) hidden states at those tokens."""

    @abstractmethod
    def save(self, directory: str) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in the Hugging Face layout of the family."""

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Some of ``state_dict``'s tensors, under their names and in their form in the folder that ``save`` writes."""
        raise NotImplementedError(f"{type(self).__name__} has no layout of single tensors")

    def save_config(self, directory: str) -> None:
        """Writes what ``save`` writes beside the weights."""
        raise NotImplementedError(f"{type(self).__name__} has no config to write")
