"""The reference policy that a KL or a preference loss is measured against, wherever its log-probs come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.types import Packed


class Reference(Protocol):
    """Log-probs of tokens under the reference policy."""

    def logprobs(self, packed: Packed, at: Tensor) -> Tensor:
        """(N,) for the tokens at ``at`` (N,), indices into the packed row."""
        ...


@dataclass(frozen=True, slots=True)
class FrozenReference:
    """A model that does not learn; it is read without gradients, at the temperature that samples."""

    backbone: Backbone
    temperature: float = 1.0

    @torch.no_grad()
    def logprobs(self, packed: Packed, at: Tensor) -> Tensor:
        """See ``Reference.logprobs``."""
        return reply_logprobs(self.backbone, packed, at, self.temperature)
