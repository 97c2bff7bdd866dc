"""The reward stage: losses of both kinds, statistics after training, and the folder that PPO opens."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms.reward_model import fit_head, objective
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, PreferencePair, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.evaluation.reward_models import score_pairs
from accord.models.backbone import Backbone
from accord.models.open import open_backbone
from accord.models.reward import RewardMLP, RewardModel, ScalarHead

PAIRS = [
    PreferencePair((5, 6, 7), (20, 21, 1), (22, 1), 0.5),
    PreferencePair((5, 6, 7), (22, 1), (23, 24, 1)),
    PreferencePair((30, 31), (32,), (33, 34)),
]
CPU = torch.device("cpu")


def model_of(make_tiny: Callable[..., Backbone]) -> RewardModel:
    torch.manual_seed(1)
    return RewardModel(make_tiny("mamba"), ScalarHead(32), "last")


def scores_of(model: RewardModel) -> list[tuple[float, float]]:
    chosen, rejected = score_pairs(model, PAIRS, CPU, "float32", 1)
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


def test_the_loss_is_bradley_terrys(make_tiny: Callable[..., Backbone]) -> None:
    model = model_of(make_tiny)
    output = objective(model, pack_preferences(PAIRS, range(3)), "bradley_terry")
    margins = [p.margin for p in PAIRS]
    losses = [math.log1p(math.exp(-(c - r - m))) for (c, r), m in zip(scores_of(model), margins, strict=True)]
    assert output.loss.value() == pytest.approx(sum(losses) / 3, abs=1e-5)
    right = [c > r for c, r in scores_of(model)]
    assert output.metrics["accuracy"].value() == pytest.approx(sum(right) / 3)


def test_mse_regresses_plus_and_minus_one(make_tiny: Callable[..., Backbone]) -> None:
    model = model_of(make_tiny)
    output = objective(model, pack_preferences(PAIRS, range(3)), "mse")
    losses = [(c - 1) ** 2 + (r + 1) ** 2 for c, r in scores_of(model)]
    assert int(output.loss.count) == 6
    assert output.loss.value() == pytest.approx(sum(losses) / 6, abs=1e-5)


def test_scores_do_not_depend_on_the_batch(make_tiny: Callable[..., Backbone]) -> None:
    model = model_of(make_tiny)
    whole = score_pairs(model, PAIRS, CPU, "float32", 32)
    turned = score_pairs(model, PAIRS[::-1], CPU, "float32", 2)
    for a, b in zip(whole, turned, strict=True):
        torch.testing.assert_close(a, b.flip(0), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------- the probe
def test_the_probe_finds_the_minimum_of_its_loss() -> None:
    """The gradient of mean Bradley-Terry loss + decay · |w|², written out, is zero at the weights found."""
    torch.manual_seed(0)
    head, decay, n = ScalarHead(6), 0.05, 80
    features, margins = torch.randn(2 * n, 6), torch.rand(n)
    features[:n, 2] += 3.0  # what separates chosen from rejected
    head.measure(features)
    accuracy = fit_head(head, features, margins, decay)
    seen = (torch.nn.functional.layer_norm(features, (6,)) - head.centre) / head.spread
    gaps = (seen[:n] - seen[n:]).double()
    w = head.linear.weight.detach()[0].double()
    gradient = -((1 - torch.sigmoid(gaps @ w - margins)) / n) @ gaps + 2 * decay * w
    assert float(gradient.abs().max()) < 1e-4
    assert accuracy == pytest.approx(float((gaps @ w > 0).double().mean()))
    assert accuracy > 0.7
    assert int(w.abs().argmax()) == 2
    weaker = ScalarHead(6)
    weaker.measure(features)
    fit_head(weaker, features, margins, 10 * decay)
    assert float(weaker.linear.weight.detach().norm()) < 0.5 * float(w.norm())
    assert all(p.grad is None for p in head.parameters())


# ------------------------------------------------------------------------------------- the stage
def values(world: Any, kind: str, **changes: Any) -> dict[str, Any]:
    sizes = {"input_dim": 32, "hidden_dim": 16} if kind == "features" else {}
    model = {"base_model": world.mamba, "kind": kind, "max_length": 96, **sizes}
    training = {"batch_size": 4, "num_epochs": 3, "learning_rate": 0.01}
    data = {"train": world.preferences, "heldout_fraction": 0.3}
    return {"model": {**model, **changes.pop("model", {})}, "data": data, "training": {**training, **changes}}


def raw_training_scores(model: RewardModel, world: Any, tokenizer: Tokenizer, seed: int) -> Tensor:
    from accord.data.heldout import split_by_prompt

    found = load_preferences(world.preferences, tokenizer, PairLengths(72, 96))
    pairs, _ = split_by_prompt(found.pairs, found.texts, 0.3, seed)
    return torch.cat(score_pairs(model, pairs, CPU, "float32"))


@pytest.mark.parametrize("kind", ["features", "language"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_scores_have_mean_zero_and_deviation_one_after_training(
    stage: Any, world: Any, tokenizer: Tokenizer, tmp_path: Path, kind: str, pooling: str
) -> None:
    """Mean and deviation of the scores, measured on the folder that the stage wrote."""
    stage("reward", values(world, kind, model={"pooling": pooling}))
    model = RewardModel.open(tmp_path / "out" / "reward" / "model")
    raw = raw_training_scores(model, world, tokenizer, 7)
    scores = (raw - model.mean) / model.deviation
    assert abs(float(scores.mean())) < 1e-4
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert float(model.deviation) != 1.0
    assert isinstance(model.head, RewardMLP if kind == "features" else ScalarHead)


def test_feature_rewards_leave_the_backbone_alone_and_write_the_specified_mlp(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]]
) -> None:
    outcome = stage("reward", values(world, "features", num_epochs=20))
    before, after = open_backbone(world.mamba), open_backbone(tmp_path / "out" / "reward" / "model")
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value)
    state = weights_of(tmp_path / "out" / "reward" / "reward_model_final.pt")
    RewardMLP(input_dim=32, hidden_dim=16, num_layers=2).load_state_dict(state)
    assert outcome.done["metrics"]["train_accuracy"] >= 0.8


def test_a_language_reward_model_trains_all_its_weights(stage: Any, world: Any, tmp_path: Path, lines: Any) -> None:
    outcome = stage("reward", values(world, "language", num_epochs=6, head_learning_rate=0.05))
    before, after = open_backbone(world.mamba), open_backbone(tmp_path / "out" / "reward" / "model")
    moved = [
        name for name, value in before.state_dict().items()
        if not torch.equal(after.state_dict()[name], value)
    ]  # fmt: skip
    assert len(moved) == len(before.state_dict())
    rows = lines("reward")
    assert rows[0]["loss"] > 2 * rows[-2]["loss"]
    metrics = outcome.done["metrics"]
    assert metrics["train_accuracy"] == 1.0
    assert 0 <= metrics["heldout_accuracy"] <= 1
    assert metrics["heldout_pairs"] >= 1
    assert rows[-1]["heldout_accuracy"] == metrics["heldout_accuracy"]


def test_a_width_that_does_not_fit_is_named(stage: Any, world: Any) -> None:
    with pytest.raises(UserError, match=r"model\.input_dim is 33, .* has width 32"):
        stage("reward", values(world, "features", model={"input_dim": 33}))


def test_nothing_left_to_train_on_is_an_error(stage: Any, world: Any) -> None:
    given = values(world, "language")
    given["data"]["heldout_fraction"] = 1.0
    with pytest.raises(UserError, match=r"heldout_fraction"):
        stage("reward", given)


@pytest.mark.parametrize("kind", ["features", "language"])
def test_micro_batches_of_pairs_change_nothing(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]], kind: str
) -> None:
    for name, size in (("whole", 0), ("cut", 3)):
        stage("reward", values(world, kind, batch_size=8, micro_batch_size=size, adam_eps=1e-3), name)
    whole, cut = (weights_of(tmp_path / "out" / n / "reward_model_final.pt") for n in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-5, atol=2e-6)


def test_a_probe_and_fewer_layers_reach_the_artifact(stage: Any, world: Any, tmp_path: Path) -> None:
    """With learning rates of zero, the result is the probe on the base's first layer."""
    still = {"num_epochs": 1, "learning_rate": 0.0, "probe_decay": 0.001, "model": {"layers": 1}}
    metrics = stage("reward", values(world, "language", **still)).done["metrics"]
    model = RewardModel.open(tmp_path / "out" / "reward" / "model")
    base, mine = open_backbone(world.mamba).state_dict(), model.backbone.state_dict()
    assert {name for name in base if not name.startswith("layers.1")} == set(mine)
    assert all(torch.equal(base[name], value) for name, value in mine.items())
    assert metrics["train_accuracy"] >= 0.9
    assert isinstance(model.head, ScalarHead)
    assert not torch.equal(model.head.spread, torch.ones(32))


@pytest.mark.parametrize("change", [{"probe_decay": 0.1}, {"model": {"layers": 1}}])
def test_what_only_a_language_model_can_do_is_refused(stage: Any, world: Any, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is a setting of model\.kind=language"):
        stage("reward", values(world, "features", **change))
