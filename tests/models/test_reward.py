"""Reward models: the specified MLP, the scalar head, where it reads, its statistics, and its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from accord.errors import UserError
from accord.models.open import keep_layers, open_backbone, small_backbone
from accord.models.reward import HEAD_CONFIG, HEAD_FILE, RewardMLP, RewardModel, ScalarHead, is_reward_model
from accord.types import Packed

PACKED = Packed.of([[5, 6, 7, 3], [8, 2, 1], [4, 4, 9, 1, 2], [9, 3], [6, 1]], parents=[-1, 0, 0, -1, 3])
REPLIES = torch.tensor([1, 2, 4])


def tiny(pooling: str = "last", kind: str = "scalar", family: str = "mamba") -> RewardModel:
    torch.manual_seed(2)
    backbone = small_backbone(family, 32, 2, 20, 1, 0)
    head = ScalarHead(32) if kind == "scalar" else RewardMLP(32, 16, 3)
    return RewardModel(backbone, head, pooling).eval()  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- heads
def test_the_mlp_has_the_specified_layers() -> None:
    torch.manual_seed(0)
    default = RewardMLP(input_dim=128, hidden_dim=64, num_layers=2)
    assert default(torch.randn(7, 128)).shape == (7,)
    assert default(torch.randn(1, 128)).shape == (1,)
    assert [type(m) for m in default.layers] == [nn.Linear, nn.ReLU, nn.Linear]
    deep = RewardMLP(10, 6, 4)
    assert [m.out_features for m in deep.layers if isinstance(m, nn.Linear)] == [6, 6, 6, 1]
    one = RewardMLP(3, num_layers=1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(one(x), x @ one.layers[0].weight[0] + one.layers[0].bias[0])  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(7,), (7, 127), (2, 3, 128)])
def test_features_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features: shape \(.*\), expected \(B, 128\)"):
        RewardMLP()(torch.zeros(shape))


def test_the_scalar_head_starts_small() -> None:
    """N(0, 1/sqrt(d+1)) with zero bias, so that first scores have a deviation of about 1."""
    torch.manual_seed(0)
    weights = torch.cat([ScalarHead(63).linear.weight.detach().flatten() for _ in range(300)])
    assert float(weights.std()) == pytest.approx(1 / 8, rel=0.03)
    assert abs(float(weights.mean())) < 4 / 8 / math.sqrt(len(weights))
    assert (ScalarHead(63).linear.bias == 0).all()
    scores = torch.cat([ScalarHead(63)(1000 * torch.randn(1, 63) + 5) for _ in range(400)])
    assert float(scores.detach().std()) == pytest.approx(1.0, rel=0.15)  # whatever the features' scale


def test_a_measured_head_sees_every_feature_at_one_scale() -> None:
    torch.manual_seed(0)
    features = torch.randn(500, 63)
    features[:, 5] += 400.0  # the same in every text, and a hundred times the others
    head = ScalarHead(63)
    drowned = head(features)
    head.measure(features)
    scores = head(features)
    assert float(drowned.detach().std()) < 0.2
    assert float(scores.detach().std()) == pytest.approx(1.0, rel=0.25)
    assert abs(float(scores.detach().mean())) < 1e-2
    normalized = torch.nn.functional.layer_norm(features, (63,))
    expected = (normalized - normalized.mean(0)) / normalized.std(0) @ head.linear.weight[0]
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_varies_gives_no_nan() -> None:
    head = ScalarHead(8)
    head.measure(torch.ones(4, 8))
    assert head(torch.randn(3, 8)).isfinite().all()


# ------------------------------------------------------------------------------------- fewer layers
@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_a_reward_model_may_use_the_first_layers_only(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, cut = (small_backbone(family, 32, 3, 20, 1, 0) for _ in range(2))
    cut.load_state_dict(whole.state_dict())
    keep_layers(cut, 2)
    for name, weight in whole.named_parameters():
        if name.startswith("layers.2") and name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
            torch.nn.init.zeros_(weight)  # the third layer then writes nothing
    torch.testing.assert_close(cut(PACKED), whole(PACKED), rtol=1e-5, atol=1e-6)
    cut.save(str(tmp_path))
    again = open_backbone(tmp_path)
    torch.testing.assert_close(again(PACKED), cut(PACKED))
    assert not any("layers.2" in name for name in again.state_dict())
    keep_layers(whole, 0)
    assert any("layers.2" in name for name in whole.state_dict())
    with pytest.raises(UserError, match=r"model\.layers is 3, but the model has 2"):
        keep_layers(cut, 3)


# ------------------------------------------------------------------------------------- pooling
@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_are_of_the_reply_and_of_nothing_else(pooling: str, family: str) -> None:
    model = tiny(pooling, family=family)
    features = model.features(PACKED, REPLIES)
    for row, (prompt, reply) in enumerate(
        (([5, 6, 7, 3], [8, 2, 1]), ([5, 6, 7, 3], [4, 4, 9, 1, 2]), ([9, 3], [6, 1]))
    ):
        hidden = model.backbone(Packed.of([prompt + reply]))[len(prompt) :]
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        torch.testing.assert_close(features[row], expected, rtol=0, atol=2e-6)
    order = torch.tensor([2, 0, 1, 0])
    torch.testing.assert_close(model.features(PACKED, REPLIES[order]), features[order])


# ------------------------------------------------------------------------------------- statistics
def test_normalized_scores_have_mean_zero_and_deviation_one() -> None:
    """On the replies that the statistics were measured on."""
    model = tiny()
    raw = model.raw(PACKED, REPLIES).detach()
    torch.testing.assert_close(model(PACKED, REPLIES).detach(), raw)  # untouched until measured
    model.normalize(raw)
    scores = model(PACKED, REPLIES).detach()
    assert abs(float(scores.mean())) < 1e-5
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(scores.argsort(), raw.argsort())
    torch.testing.assert_close(model.raw(PACKED, REPLIES).detach(), raw)  # what is trained stays as it was


def test_equal_scores_do_not_divide_by_zero() -> None:
    model = tiny()
    model.normalize(torch.full((5,), 3.0))
    assert model(PACKED, REPLIES).isfinite().all()


# ------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("kind", ["scalar", "mlp"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_saved_model_opens_with_the_same_scores(tmp_path: Path, family: str, kind: str, pooling: str) -> None:
    model = tiny(pooling, kind, family)
    model.normalize(torch.tensor([0.5, 2.0, 7.0]))
    model.save(str(tmp_path))
    opened = RewardModel.open(tmp_path)
    assert opened.pooling == pooling
    assert type(opened.head) is type(model.head)
    assert torch.equal(opened(PACKED, REPLIES), model(PACKED, REPLIES))
    for name, value in model.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value), name
    assert is_reward_model(tmp_path)


def test_an_mlp_of_one_layer_opens_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RewardModel(small_backbone("mamba", 32, 1, 20, 1, 0), RewardMLP(32, 16, 1), "last")
    model.save(str(tmp_path))
    assert torch.equal(RewardModel.open(tmp_path)(PACKED, REPLIES), model(PACKED, REPLIES))


def test_the_backbone_of_a_reward_folder_is_a_model_of_its_own(tmp_path: Path) -> None:
    from accord.models.open import open_backbone

    model = tiny()
    model.save(str(tmp_path))
    alone = open_backbone(tmp_path)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    tiny().backbone.save(str(tmp_path))
    assert not is_reward_model(tmp_path)
    with pytest.raises(UserError, match=rf"no {HEAD_CONFIG} here"):
        RewardModel.open(tmp_path)


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny().save(str(tmp_path))
    assert (tmp_path / HEAD_FILE).exists()
    shape = json.loads((tmp_path / HEAD_CONFIG).read_text())
    (tmp_path / HEAD_CONFIG).write_text(json.dumps({**shape, "kind": "mlp", "widths": [8, 1]}))
    with pytest.raises(UserError, match="does not fit"):
        RewardModel.open(tmp_path)
