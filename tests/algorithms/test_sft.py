"""The stage sft: a checkpoint per epoch, micro-batches that change nothing, and its limit on rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def test_sft_writes_a_checkpoint_per_epoch(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]]
) -> None:
    training = {"num_epochs": 2, "learning_rate": 0.01, "batch_size": 4}
    stage("sft", {"model": {"base_model": world.mamba}, "data": {"train": world.sft}, "training": training})
    out = tmp_path / "out" / "sft"
    assert sorted(p.name for p in out.glob("*.pt")) == ["sft_epoch_0.pt", "sft_epoch_1.pt", "sft_final.pt"]
    first, second, final = (weights_of(out / f"sft_{name}.pt") for name in ("epoch_0", "epoch_1", "final"))
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(second[k], final[k]) for k in final)
    assert torch.load(out / "sft_epoch_1.pt", weights_only=True)["epoch"] == 1
    # one epoch of the same run is the first of two: the schedule is constant, so nothing else differs
    values = {"model": {"base_model": world.mamba}, "data": {"train": world.sft}}
    stage("sft", {**values, "training": {**training, "num_epochs": 1}}, "one")
    one = weights_of(tmp_path / "out" / "one" / "sft_final.pt")
    assert all(torch.equal(one[k], first[k]) for k in one)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_of_texts_change_nothing(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]], micro: int
) -> None:
    """Accumulated passes over packed rows of different lengths are weighted by their counts."""
    for name, size in (("whole", 0), ("cut", micro)):
        training = {"batch_size": 8, "micro_batch_size": size, "num_epochs": 2, "adam_eps": 1e-3}
        values = {"model": {"base_model": world.transformer}, "data": {"train": world.sft}, "training": training}
        stage("sft", values, name)
    whole, cut = (weights_of(tmp_path / "out" / n / "sft_final.pt") for n in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=1e-6)


def test_a_limit_reads_the_first_rows(stage: Any, world: Any) -> None:
    data = {"train": world.sft, "limit": 3}
    values = {"model": {"base_model": world.mamba}, "data": data, "training": {"batch_size": 1}}
    assert stage("sft", values).done["metrics"]["loss"] > 0
