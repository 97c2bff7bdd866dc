"""Opening models: weights that are not finite are refused by the name of the tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from accord.errors import UserError
from accord.models.open import open_backbone, require_finite, small_backbone
from accord.models.reward import RewardModel, ScalarHead


@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(family: str, bad: float, tmp_path: Path) -> None:
    """They would become a loss that is not finite, and be blamed on the learning rate."""
    backbone = small_backbone(family, 32, 2, 50, 1, 0)
    name, tensor = list(backbone.named_parameters())[3]
    with torch.no_grad():
        tensor.view(-1)[1] = bad
    backbone.save(str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_backbone(tmp_path)
    assert str(caught.value).startswith(
        f"{tmp_path}: the weights hold NaN or infinity (1 of {tensor.numel():,} in the tensor"
    )
    assert name in str(caught.value)


def test_a_reward_head_is_checked_as_well(tmp_path: Path) -> None:
    model = RewardModel(small_backbone("mamba", 32, 1, 50, 1, 0), ScalarHead(32), "mean")
    model.deviation.fill_(math.nan)
    model.save(str(tmp_path))
    with pytest.raises(
        UserError, match=r"reward_head\.safetensors: the weights hold NaN .*1 of 1 in the tensor deviation"
    ):
        RewardModel.open(tmp_path)


def test_large_weights_whose_sum_overflows_are_finite() -> None:
    require_finite("x", [("a", torch.tensor([3e38, 3e38])), ("b", torch.zeros(0))])
