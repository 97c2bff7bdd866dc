"""Reward models and DPO on soft labels, weights and ties: from rows to metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms.reward_model import new_ties, objective
from accord.config.load import build
from accord.config.reward import LanguageRewardModel
from accord.data.packing import pack_preferences
from accord.data.preferences import PreferencePair
from accord.errors import Interrupted, UserError
from accord.functional.losses.ties import tie_parameter
from accord.models.backbone import Backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.runtime.run import Run

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


@pytest.fixture
def votes(tmp_path: Path) -> Callable[..., str]:
    """Rows whose replies end well or badly; every fourth is a tie of two good ones."""

    def write(**more: Any) -> str:
        rows = []
        for n in range(24):
            word = WORDS[n % 8]
            tied = n % 4 == 3
            row = {
                "prompt": f"say {word} {n}",
                "chosen": f"{word} good.",
                "rejected": f"{word} {'fine' if tied else 'bad'}.",
            }
            rows.append({**row, "label": 0.5 if tied else 1.0, **more})
        path = tmp_path / "votes.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def values(world: Any, path: str, heldout: float = 0.0, **model: Any) -> dict[str, Any]:
    training = {"batch_size": 4, "num_epochs": 4, "learning_rate": 0.01}
    kind = {"kind": "language", "base_model": world.mamba, "max_length": 96, **model}
    return {"model": kind, "data": {"train": path, "heldout_fraction": heldout}, "training": training}


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_a_reward_model_learns_the_parameter_of_ties(stage: Any, world: Any, votes: Any, lines: Any, ties: str) -> None:
    metrics = stage("reward", values(world, votes(), ties=ties)).done["metrics"]
    start = tie_parameter(ties, math.log(2 * 6.5 / 25 / (1 - 6.5 / 25)))  # type: ignore[arg-type]
    assert metrics["tie_parameter"] != pytest.approx(start, rel=1e-3)
    rows = lines("reward")
    assert rows[-2]["loss"] < rows[0]["loss"]
    assert 0 < rows[0]["tie_probability"] < 1
    assert metrics["train_accuracy"] == 1.0


def test_a_given_parameter_stays(stage: Any, world: Any, votes: Any) -> None:
    done = stage("reward", values(world, votes(), ties="davidson", tie_parameter=0.7)).done
    assert done["metrics"]["tie_parameter"] == pytest.approx(0.7)


def test_a_run_with_ties_that_was_stopped_ends_like_one_that_was_not(
    stage: Any, world: Any, votes: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped after step 7 of 24; the parameter of ties is a part of the saved state."""
    given = values(world, votes(), ties="davidson")
    whole = stage("reward", given, "whole").done["metrics"]
    record, steps = Run.record, []

    def stopping(run: Run, metrics: Any, **more: Any) -> None:
        record(run, metrics, **more)
        steps.append(1)
        run.stop.raised = len(steps) == 7

    monkeypatch.setattr(Run, "record", stopping)
    with pytest.raises(Interrupted):
        stage("reward", given, "cut")
    monkeypatch.setattr(Run, "record", record)
    resumed = stage("reward", given, "cut", resume=True).done["metrics"]
    assert resumed["tie_parameter"] == whole["tie_parameter"]
    before, after = (weights_of(tmp_path / "out" / name / "reward_model_final.pt") for name in ("whole", "cut"))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_half_a_win_for_each_is_the_default(make_tiny: Callable[..., Backbone]) -> None:
    torch.manual_seed(1)
    model = RewardModel(make_tiny("mamba"), ScalarHead(32), "last")
    pairs = [
        PreferencePair((5, 6), (20, 1), (22, 1), label=0.5, weight=2.0),
        PreferencePair((5, 6), (22, 1), (23, 24, 1), label=0.75),
    ]
    batch = pack_preferences(pairs, range(2))
    both = torch.cat([batch.chosen, batch.rejected])
    chosen, rejected = model.raw(batch.packed, both).detach().double().chunk(2)
    p = torch.sigmoid(chosen - rejected)
    losses = -2 * (p[0].log() + (1 - p[0]).log()) / 2, -(0.75 * p[1].log() + 0.25 * (1 - p[1]).log())
    assert objective(model, batch, "bradley_terry").loss.value() == pytest.approx(float(sum(losses)) / 2, rel=1e-4)
    squares = 2 * (chosen[0] ** 2 + rejected[0] ** 2) + (chosen[1] - 0.5) ** 2 + (rejected[1] + 0.5) ** 2
    assert objective(model, batch, "mse").loss.value() == pytest.approx(float(squares) / 4, rel=1e-4)


def test_dpo_trains_on_soft_labels_and_leaves_ties_out_of_accuracy(
    stage: Any, world: Any, votes: Any, lines: Any
) -> None:
    given = values(world, votes(), heldout=0.4)
    given["model"].pop("kind")
    metrics = stage("dpo", given).done["metrics"]
    assert lines("dpo")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0.5 <= metrics["heldout_accuracy"] <= 1


def test_weights_multiply_the_loss(stage: Any, world: Any, votes: Any, lines: Any) -> None:
    given = values(world, votes())
    given["training"].update(learning_rate=0.0, num_epochs=1)
    stage("reward", given, "one")
    stage("reward", {**given, "data": {**given["data"], "train": votes(weight=3.0)}}, "three")
    for one, three in zip(lines("one"), lines("three"), strict=True):
        if "loss" in one:
            assert three["loss"] == pytest.approx(3 * one["loss"], rel=1e-5)


# ------------------------------------------------------------------ mistakes
def settings(**model: Any) -> LanguageRewardModel:
    return build(LanguageRewardModel, model, {}, "the test")


def test_only_ties_and_shares_and_margins_are_refused_with_the_file(stage: Any, world: Any, votes: Any) -> None:
    with pytest.raises(UserError, match="every row is a tie"):
        stage("reward", values(world, votes(label=0.5)))
    pair = PreferencePair((1,), (2,), (3,))
    asked = settings(ties="davidson")
    for pairs, said in (
        ([pair], "no row is a tie"),
        ([pair, PreferencePair((1,), (2,), (3,), label=0.7)], "not 0.7; write one row for each"),
        ([pair, PreferencePair((1,), (2,), (3,), 0.5)], "no place for margins"),
    ):
        with pytest.raises(UserError, match=said):
            new_ties(asked, pairs, "votes.jsonl")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"tie_parameter": 2.0}, "model.tie_parameter needs model.ties"),
        ({"ties": "davidson", "objective": "mse"}, "needs model.objective=bradley_terry"),
        ({"ties": "rao_kupper", "tie_parameter": 1.0}, "above 1"),
        ({"ties": "thurstone"}, "ties"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(**model)
