"""``Backbone``: the ``nn.Module`` base class of every language model here, and its cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
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
    """The number of positions that a text may have; None where texts may be of any length."""
    notes: tuple[str, ...] = ()
    """What its user should know, a sentence without a full stop each: that it is slow, or what training leaves out."""
    policy_vocabulary: int | None = None
    """The number of ids that a policy gives a probability, from 0 on; None for all.  See ``exclude``."""
    gaps: tuple[int, ...] = ()
    """Ids below ``policy_vocabulary`` without a token."""

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

    def exclude(self, ids: Iterable[int]) -> None:
        """From here on the policy never samples ``ids``, those without a token (a vocabulary padded to a round number).

        Training on labels is not changed: only ``policy_logits`` and ``policy_head_weight`` leave them out.
        """
        excluded = set(ids)
        size = self.vocab_size
        while size - 1 in excluded:
            size -= 1
        self.policy_vocabulary = size if size < self.vocab_size else None
        self.gaps = tuple(sorted(i for i in excluded if i < size))

    def policy_logits(self, hidden: Tensor) -> Tensor:
        """(N, V') logits of the distribution that replies are sampled from, old and new log-probs alike.

        V' is V without the excluded ids at its end; the logit of another excluded id is -inf.
        """
        logits = self.logits(hidden)
        if self.policy_vocabulary is not None:
            logits = logits[:, : self.policy_vocabulary]
        if self.gaps:
            logits = logits.index_fill(-1, torch.tensor(self.gaps, device=logits.device), float("-inf"))
        return logits

    def policy_head_weight(self) -> Tensor | None:
        """``head_weight`` for ``policy_logits``: (V', D) where these are a product with it alone; else None."""
        weight = None if self.gaps else self.head_weight()
        return weight if weight is None or self.policy_vocabulary is None else weight[: self.policy_vocabulary]

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
