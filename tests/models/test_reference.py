"""The reference policy: a frozen model's log-probs are those of its replies, without gradient."""

from __future__ import annotations

import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.models.open import small_backbone
from accord.models.reference import FrozenReference, Reference
from accord.types import Packed


def tiny(family: str) -> Backbone:
    torch.manual_seed(0)
    return small_backbone(family, 32, 2, 24, 1, 0)


@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_frozen_reference_is_reply_logprobs_without_gradient(family: str, temperature: float) -> None:
    backbone = tiny(family)
    packed = Packed.of([[5, 6, 7], [8, 9], [10, 11, 1]], [-1, 0, 0])
    at = torch.tensor([3, 4, 5, 6, 7])
    expected = reply_logprobs(backbone, packed, at, temperature)
    assert expected.requires_grad
    reference: Reference = FrozenReference(backbone, temperature)
    found = reference.logprobs(packed, at)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
    assert FrozenReference(backbone).temperature == 1.0


def test_a_frozen_reference_reads_the_model_as_it_is_now() -> None:
    """It is a view, not a copy: whoever trains the same model must pass a copy."""
    backbone = tiny("transformer")
    packed, at = Packed.of([[5, 6, 7, 8]]), torch.tensor([1, 2, 3])
    reference = FrozenReference(backbone)
    before = reference.logprobs(packed, at)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(reference.logprobs(packed, at), before)
