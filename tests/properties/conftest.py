"""The small models in float64, with weights large enough that attention is not uniform and every gate is half open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.open import small_backbone


def _with_large_weights(family: str) -> Backbone:
    torch.manual_seed(11)
    backbone = small_backbone(family, 32, 2, 24, 1, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    backbone.double().eval()
    return backbone


@pytest.fixture(scope="session")
def double() -> Callable[[str], Backbone]:
    """``double(family)``: always the same model, not a copy of it; 24 tokens, of which 1 is EOS and 0 the pad."""
    made = {family: _with_large_weights(family) for family in ("mamba", "transformer")}
    return made.__getitem__
