"""What a loss needs of a backbone and no more: hidden states of chosen tokens, and the head as a matrix.

A backbone may offer ``hidden_at(packed, at)`` and ``head_weight()``; one that does not is asked for everything.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from accord.models.backbone import Backbone
from accord.types import Packed


def hidden_at(backbone: Backbone, packed: Packed, at: Tensor) -> Tensor:
    """(N, D): ``backbone.hidden(packed)[at]`` for (N,) indices into the packed row."""
    method = getattr(backbone, "hidden_at", None)
    return backbone.hidden(packed)[at] if method is None else cast(Tensor, method(packed, at))


def head_weight(backbone: Backbone) -> Tensor | None:
    """(V, D) where logits are a product with this matrix alone; None where they are not, or nobody says so."""
    method = getattr(backbone, "head_weight", None)
    return None if method is None else cast("Tensor | None", method())
