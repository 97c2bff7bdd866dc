"""Fused reward models average calibrated scores, whatever scale and statistics each head has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.config.fusion import FuseConfig
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, load_preferences
from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.fusion.head import fold_statistics, read_head, restore_statistics
from accord.fusion.merge import merge
from accord.models.hf_format import WEIGHTS
from accord.models.open import open_backbone
from accord.models.reward import HEAD_FILE, RewardModel

Save = Callable[..., str]
HEADS = ["scalar", "mlp"]


def opened(folder: str | Path) -> RewardModel:
    return RewardModel.open(folder).eval().requires_grad_(False)


def calibrated(model: RewardModel, features: Tensor) -> Tensor:
    scores: Tensor = (model.head(features) - model.mean) / model.deviation
    return scores


def fuse(target: Path, models: list[Any], **settings: Any) -> RewardModel:
    merge(FuseConfig(models=models, **settings), target)
    return opened(target)


@pytest.mark.parametrize("head", HEADS)
def test_folding_statistics_changes_no_score_and_can_be_undone(head: str, save: Save) -> None:
    folder = save("a", head=head, seed=2)
    model, features = opened(folder), torch.randn(50, 32)
    bare = opened(folder)
    _, state = read_head(Path(folder))
    values = fold_statistics(state)
    assert not {"mean", "deviation", "head.centre", "head.spread"} & set(values)
    rest = {"mean": torch.tensor(0.0), "deviation": torch.tensor(1.0)}
    if head == "scalar":
        rest |= {"head.centre": torch.zeros(32), "head.spread": torch.ones(32)}
    bare.load_state_dict({**values, **rest}, strict=False)
    torch.testing.assert_close(calibrated(bare, features), calibrated(model, features), rtol=1e-4, atol=1e-5)
    for name, tensor in restore_statistics(values, state).items():
        torch.testing.assert_close(tensor.float(), state[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_average_of_scalar_heads_averages_calibrated_scores(save: Save, tmp_path: Path) -> None:
    """Exactly, for equal features: heads of different scale, offset, mean and deviation on one backbone."""
    folders = [save(f"m{i}", head="scalar", seed=i) for i in (1, 2, 3)]
    for folder in folders[1:]:  # one backbone
        (Path(folder) / WEIGHTS).write_bytes((Path(folders[0]) / WEIGHTS).read_bytes())
    weights = [1.0, 2.0, 5.0]
    merged = fuse(tmp_path / "out", [{"model": f, "weight": w} for f, w in zip(folders, weights, strict=True)])
    features = torch.randn(100, 32)
    each = torch.stack([calibrated(opened(folder), features) for folder in folders])
    expected = (each * torch.tensor(weights)[:, None]).sum(0) / sum(weights)
    torch.testing.assert_close(calibrated(merged, features), expected, rtol=1e-4, atol=1e-5)
    first = opened(folders[0])
    for name in ("mean", "deviation"):
        assert torch.equal(getattr(merged, name), getattr(first, name))


def test_with_equal_statistics_it_is_the_plain_average_of_warm(save: Save, tmp_path: Path) -> None:
    folders = [save(f"m{i}", head="scalar", seed=i) for i in (1, 2)]
    shared = load_file(Path(folders[0]) / HEAD_FILE)
    path = Path(folders[1]) / HEAD_FILE
    own = load_file(path)
    same = {name: shared[name] for name in ("mean", "deviation", "head.centre", "head.spread")}
    save_file({**own, **same}, path)
    fuse(tmp_path / "out", folders)
    merged = load_file(tmp_path / "out" / HEAD_FILE)
    for name in ("head.linear.weight", "head.linear.bias"):
        torch.testing.assert_close(merged[name], (shared[name] + own[name]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "interpolate"])
def test_a_reward_model_fused_with_itself_is_itself(method: str, head: str, save: Save, tmp_path: Path) -> None:
    base, model = save("base", head=head), save("a", head=head, seed=1)
    settings = {"ties": {"base": base}, "interpolate": {"base": base, "t": 1.0}}.get(method, {})
    merged = fuse(tmp_path / "out", [model] if method == "interpolate" else [model, model], method=method, **settings)
    expected = opened(model).state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_base_without_a_head_counts_as_silence(save: Save, tmp_path: Path) -> None:
    base, model = save("base"), save("a", head="scalar", seed=1)
    merged = fuse(tmp_path / "out", [model], method="interpolate", base=base, t=0.5)
    features = torch.randn(20, 32)
    half = 0.5 * calibrated(opened(model), features)
    torch.testing.assert_close(calibrated(merged, features), half, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_calibration_standardizes_the_merged_scores(head: str, save: Save, tmp_path: Path, pairs: str) -> None:
    folders = [save(f"m{i}", head=head, seed=i) for i in (1, 2, 3)]
    merged = fuse(tmp_path / "out", folders, calibrate=pairs)
    rows = load_preferences(pairs, small_tokenizer(), PairLengths(192, 256)).pairs
    batch = pack_preferences(rows, range(len(rows)))
    with torch.no_grad():
        scores = merged(batch.packed, torch.cat([batch.chosen, batch.rejected]))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, rel=1e-5)
    rough = fuse(tmp_path / "rough", folders)
    with torch.no_grad():
        before = rough(batch.packed, torch.cat([batch.chosen, batch.rejected]))
    assert abs(float(before.std(correction=0)) - 1) > 0.01, "the test can tell"
    torch.testing.assert_close((before - before.mean()) / before.std(correction=0), scores, rtol=1e-3, atol=1e-4)
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "calibrate" in found["parents"]


def test_the_backbone_is_merged_as_any_model(save: Save, tmp_path: Path) -> None:
    folders = [save(f"m{i}", head="scalar", seed=i) for i in (1, 2)]
    fuse(tmp_path / "out", folders)
    states = [load_file(Path(f) / WEIGHTS) for f in folders]
    for name, tensor in load_file(tmp_path / "out" / WEIGHTS).items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    open_backbone(tmp_path / "out")


def test_heads_that_do_not_fit_are_refused(save: Save, tmp_path: Path, pairs: str) -> None:
    scalar, mlp, none = save("a", head="scalar", seed=1), save("b", head="mlp", seed=2), save("c", seed=3)
    with pytest.raises(UserError, match=r"different reward heads: kind in reward_head\.json is 'scalar' and 'mlp'"):
        merge(FuseConfig(models=[scalar, mlp]), tmp_path / "out")
    for models in ([scalar, none], [none, scalar]):
        with pytest.raises(UserError, match=r"a is a reward model and .*c is not.*merge models of one kind"):
            merge(FuseConfig(models=models), tmp_path / "out")
    with pytest.raises(UserError, match="is a reward model and"):
        merge(FuseConfig(models=[none], method="interpolate", base=scalar), tmp_path / "out")
    with pytest.raises(UserError, match="calibrate is for reward models"):
        merge(FuseConfig(models=[none, none], calibrate=pairs), tmp_path / "out")
    assert not (tmp_path / "out").exists()
