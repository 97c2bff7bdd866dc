"""What every language backbone offers, whatever its family, and how one is built or opened."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from accord.types import Packed


class Cache(Protocol):
    """The state of ``B`` texts being written."""

    def select(self, rows: Tensor) -> Cache:
        """A cache of the named rows, (B',) int64: copies, repeats or drops, in the order given."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A causal language model, split where RLHF needs it split: hidden states apart from the vocabulary head.

    Implementations are ``nn.Module``s; dropout is absent.  All hidden states are those after the final norm.
    """

    width: int
    vocab_size: int

    def hidden(self, packed: Packed) -> Tensor:
        """(L, D) hidden states; the one at token t sees t and what precedes it in its text, nothing else."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, D)."""
        ...

    def prefill(self, packed: Packed, capacity: int) -> tuple[Tensor, Cache]:
        """Reads ``S`` prompts (segments without parents): the hidden state at each last token, (S, D), and their cache.

        ``capacity`` is the number of tokens that ``step`` may add.
        """
        ...

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Appends one token (B,) to each row of the cache, in place; (B, D) hidden states at those tokens."""
        ...

    def save(self, directory: str) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in the Hugging Face layout of the family."""
        ...
