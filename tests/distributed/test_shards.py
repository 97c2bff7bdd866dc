"""N ranks take the steps of one: in float64, whatever the strategy, with rows that do not divide evenly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.models.reward import RewardModel
from tests.distributed import cases

CASES = cases.__name__
Pair = Callable[..., list[Any]]
pytestmark = pytest.mark.xdist_group("ranks")
FAMILIES, STRATEGIES = ("transformer", "mamba"), ("ddp", "fsdp")


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    """Equal numbers at any depth of dicts and lists, relative to the largest of a list."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key], tolerance)
    elif isinstance(expected, list) and expected and isinstance(expected[0], (dict, list)):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)
    else:
        numbers = (torch.tensor(value, dtype=torch.float64) for value in (found, expected))
        torch.testing.assert_close(*numbers, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_two_ranks_take_the_steps_of_one(pair: Pair, tmp_path: Path, stage: str, family: str, strategy: str) -> None:
    """Losses, gradients and weights; steps of 3, 3 and 1 rows; row 1 has no label."""
    one = cases.train(str(tmp_path / "one"), stage, family)
    two = pair(CASES, "train", folder=str(tmp_path / "two"), stage=stage, family=family, micro=1, strategy=strategy)
    assert two[0] == two[1]
    assert_same(two[0]["steps"], one["steps"], 1e-7)  # one process divides counts in float32
    assert len(one["steps"]) == 6
    for name in ("loss", "grad_norm"):
        assert_same([step[name] for step in two[0]["steps"]], [step[name] for step in one["steps"]], 1e-8)
    assert_same(two[0]["weights"], one["weights"], 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_generates_and_evaluates_as_a_whole_one(pair: Pair, family: str) -> None:
    one = cases.generate(family, "ddp")
    for rank in pair(CASES, "generate", family=family, strategy="fsdp"):
        torch.testing.assert_close(torch.tensor(rank[0]), torch.tensor(one[0]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.tensor(rank[1]), torch.tensor(one[1]), rtol=1e-6, atol=1e-6)
        assert rank[2] == pytest.approx(one[2], rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_model_is_saved_in_a_file_for_each_rank(pair: Pair, tmp_path: Path, family: str) -> None:
    cases.artifact(str(tmp_path / "one"), family, "ddp")
    names, _ = pair(CASES, "artifact", folder=str(tmp_path / "two"), family=family, strategy="fsdp")
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "manifest.json"} <= {*names}
    one, two = (RewardModel.open(tmp_path / name / "out" / "model").state_dict() for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    sizes = [(tmp_path / "two" / "out" / "model" / name).stat().st_size for name in names if name.startswith("model-0")]
    assert max(sizes) < 0.75 * sum(sizes)  # neither rank held the whole model


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_state_of_two_ranks_resumes_exactly_on_two_and_closely_on_one(
    pair: Pair, tmp_path: Path, strategy: str
) -> None:
    options = {"stage": "reward", "family": "mamba", "strategy": strategy}
    whole = pair(CASES, "train", folder=str(tmp_path / "whole"), **options)[0]
    stopped = pair(CASES, "train", folder=str(tmp_path / "cut"), stop=2, **options)
    assert [len(rank["steps"]) for rank in stopped] == [2, 2]  # only the last rank was asked to
    names = {path.name for path in (tmp_path / "cut" / "out" / "state").rglob("*.*")}
    assert names == {"rank-0.safetensors", "rank-0.json", "rank-1.safetensors", "rank-1.json"}
    assert not (tmp_path / "cut" / "out" / "state.pt").exists()
    one = cases.train(str(tmp_path / "cut"), "reward", "mamba", resume=True)
    assert_same(one["steps"], whole["steps"][2:], 1e-6)
    two = pair(CASES, "train", folder=str(tmp_path / "cut"), resume=True, **options)[0]
    assert two["steps"] == whole["steps"][2:]
    assert two["weights"] == whole["weights"]


def test_a_state_moves_between_one_two_and_four_ranks(pair: Pair, four: Pair, tmp_path: Path) -> None:
    """From two to four to one to four; of a step's 3 or 1 rows four ranks leave one or three ranks without any."""
    for strategy in STRATEGIES:
        folder, options = str(tmp_path / strategy), {"stage": "sft", "family": "transformer", "strategy": strategy}
        whole = pair(CASES, "train", folder=str(tmp_path / f"{strategy}_whole"), **options)[0]["steps"]
        parts = [
            pair(CASES, "train", folder=folder, stop=1, **options),
            four(CASES, "train", folder=folder, stop=1, resume=True, **options),
            [cases.train(folder, "sft", "transformer", stop=2, resume=True)],
            four(CASES, "train", folder=folder, resume=True, **options),
        ]
        assert all(rank == ranks[0] for ranks in parts for rank in ranks)
        assert [len(ranks[0]["steps"]) for ranks in parts] == [1, 1, 2, 2]
        assert_same([step for ranks in parts for step in ranks[0]["steps"]], whole, 1e-6)


def test_a_state_of_one_process_resumes_on_two_ranks(pair: Pair, tmp_path: Path) -> None:
    whole = cases.train(str(tmp_path / "whole"), "sft", "transformer")
    cases.train(str(tmp_path / "cut"), "sft", "transformer", stop=3)
    two = pair(
        CASES, "train", folder=str(tmp_path / "cut"), stage="sft", family="transformer", resume=True, strategy="fsdp"
    )
    assert_same(two[0]["steps"], whole["steps"][3:], 1e-6)
