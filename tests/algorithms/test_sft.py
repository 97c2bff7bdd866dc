"""The stage sft: a checkpoint per epoch, micro-batches that change nothing, and its limit on rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.data.heldout import is_heldout
from accord.errors import UserError
from accord.training import cross_entropy
from tests.conftest import ROWS


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


def held_out(lines: Any, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row["heldout/loss"]) for row in lines(name) if "heldout/loss" in row]


@pytest.mark.parametrize("kind", ["sft", "base"])
def test_a_held_out_loss_is_logged_returned_and_said_and_changes_no_weight(
    stage: Any,
    world: Any,
    lines: Any,
    tmp_path: Path,
    weights_of: Callable[[Path], dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    model = (
        {"base_model": world.mamba} if kind == "sft" else {"base_model": "transformer", "d_model": 32, "n_layers": 1}
    )
    rows = world.sft if kind == "sft" else world.base
    training = {"batch_size": 4, "num_epochs": 2, "learning_rate": 0.01}
    stage(kind, {"model": model, "data": {"train": rows}, "training": training}, "without")
    assert held_out(lines, "without") == []
    assert "none held out; data.heldout or data.heldout_fraction" in capsys.readouterr().out
    data = {"train": rows, "heldout": rows}
    done = stage(kind, {"model": model, "data": data, "training": training, "eval_every": 2}, "with").done
    said = capsys.readouterr().out
    final = weights_of(tmp_path / "out" / "without" / f"{kind}_final.pt")
    for name, value in weights_of(tmp_path / "out" / "with" / f"{kind}_final.pt").items():
        assert torch.equal(value, final[name])
    found = held_out(lines, "with")
    last = max(row["step"] for row in lines("with"))
    assert [step for step, _ in found] == [0, 2, 4, *([last] if last > 4 else [])]
    assert done["metrics"]["heldout/loss"] == found[-1][1] < found[0][1]  # it has learned these very rows
    assert [r for r in lines("with") if "heldout/loss" not in r] == lines("without")
    assert f"held-out loss {found[-1][1]:.4f} nats per token (perplexity {math.exp(found[-1][1]):.4g})" in said
    assert "before the first step, every 2 steps and after the last" in said
    assert "of these are trained on as well" in said
    manifest = json.loads((tmp_path / "out" / "with" / "model" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["heldout/loss"] == found[-1][1]


def test_a_share_of_the_prompts_is_held_out_by_the_one_split(stage: Any, world: Any, lines: Any) -> None:
    """The rows that the split of pairs and rewards holds out too, after the limit."""
    prompts = [prompt for prompt, _, _ in ROWS[:6]]
    expected = sum(is_heldout(prompt, 0.4, 7) for prompt in prompts)
    assert 0 < expected < 6
    data = {"train": world.sft, "heldout_fraction": 0.4, "limit": 6}
    values = {"model": {"base_model": world.mamba}, "data": data, "training": {"batch_size": 1}}
    assert stage("sft", values).done["metrics"]["heldout/loss"] > 0
    assert max(row["step"] for row in lines("sft")) == 6 - expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', r"held\.jsonl, row 2: no 'completion'"),
        ('{"prompt": "a", "completion": ""}\n', r"held\.jsonl: no row is usable.*empty reply 1"),
        ("\n\n", r"held\.jsonl: no rows; expected one JSON object per line"),
        ("[1]\n", r"held\.jsonl, row 1"),
    ],
)
def test_a_held_out_file_is_checked_as_the_training_file_is(
    stage: Any, world: Any, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "held.jsonl").write_text(content, encoding="utf-8")
    data = {"train": world.sft, "heldout": str(tmp_path / "held.jsonl")}
    with pytest.raises(UserError, match=message):
        stage("sft", {"model": {"base_model": world.mamba}, "data": data})
    assert not (tmp_path / "out" / "sft" / "model").exists()


def test_everything_held_out_is_refused(stage: Any, world: Any) -> None:
    values = {"model": {"base_model": world.mamba}, "data": {"train": world.sft, "heldout_fraction": 1.0}}
    with pytest.raises(
        UserError, match=r"data\.heldout_fraction=1 leaves none of the 8 rows of .* to train on; make it"
    ):
        stage("sft", values)


def test_a_held_out_loss_that_is_no_number_is_left_out_and_said(
    stage: Any, world: Any, lines: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cross_entropy, "mean_cross_entropy", lambda *_: (math.nan, 9))
    data = {"train": world.sft, "heldout": world.sft}
    done = stage("sft", {"model": {"base_model": world.mamba}, "data": data}).done
    assert "heldout/loss" not in done["metrics"]
    assert done["metrics"]["loss"] > 0
    assert held_out(lines, "sft") == []
    assert "the held-out loss at step 0 is nan, not a finite number, and is left out" in capsys.readouterr().out
