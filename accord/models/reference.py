"""The reference policy of a KL penalty or a preference loss, however its log-probs are obtained."""

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
    """A model used without gradients, at the sampling temperature."""

    backbone: Backbone
    temperature: float = 1.0

    @torch.no_grad()
    def logprobs(self, packed: Packed, at: Tensor) -> Tensor:
        """See ``Reference.logprobs``."""
        return reply_logprobs(self.backbone, packed, at, self.temperature)
