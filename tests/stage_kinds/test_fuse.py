"""``accord fuse`` and fuse as a stage of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.cli import main
from accord.io.digests import content_digest
from accord.models.reward import RewardModel

Save = Callable[..., str]


def test_accord_fuse_leaves_a_model(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = save("a", seed=1), save("b", seed=2)
    where = [f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}"]
    assert main(["fuse", f"models.x.model={first}", f"models.y.model={second}", "name=half", *where]) == 0
    said = capsys.readouterr().out
    assert "opens with transformers" in said
    assert f"models.fused={tmp_path / 'out'}/half" in said
    manifest = json.loads((tmp_path / "out" / "half" / "model" / "manifest.json").read_text())
    assert manifest["name"] == "half"
    assert manifest["parents"]["models.1.model"] == content_digest(Path(second))
    done = json.loads((tmp_path / "out" / "half" / "done.json").read_text())
    assert done["metrics"]["models"] == 2
    assert done["metrics"]["parameters"] > 1000
    assert manifest["key"] == done["key"]


def test_a_mistake_is_one_sentence_and_exit_code_2(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = save("a"), save("b", width=64)
    where = [f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}"]
    assert main(["fuse", f"models.x.model={first}", f"models.y.model={second}", *where]) == 2
    said = capsys.readouterr().err
    assert "hidden_size in config.json is 32 and 64" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "fuse" / "model").exists()


def test_a_pipeline_fuses_once_and_again_where_a_model_changed(save: Save, tmp_path: Path, pairs: str) -> None:
    first, second, base = (save(n, head="scalar", seed=i) for i, n in enumerate(("a", "b", "base")))
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        f"out: {tmp_path / 'out'}\nlogs: {tmp_path / 'logs'}\nstages:\n"
        f"  warm: {{ kind: fuse, set: {{ models: {{ a: {first}, b: {second} }}, calibrate: {pairs} }} }}\n"
        "  back:\n    kind: fuse\n    inputs: { models.a.model: warm }\n"
        f"    set: {{ method: interpolate, base: {base}, t: 0.7 }}\n"
    )
    assert main(["run", str(path)]) == 0
    folders = [tmp_path / "out" / name / "model" for name in ("warm", "back")]
    before = [content_digest(folder) for folder in folders]
    times = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]
    RewardModel.open(folders[1])
    warm = json.loads((folders[1] / "manifest.json").read_text())["parents"]["models.0.model"]
    assert warm == before[0], "what was made of what"
    assert main(["run", str(path)]) == 0
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders] == times
    save("b", head="scalar", seed=9)
    assert main(["run", str(path)]) == 0
    assert all(content_digest(folder) != digest for folder, digest in zip(folders, before, strict=True))


def test_models_of_other_kinds_of_stages_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("stages:\n  half: { kind: fuse, set: { models: { a: sfft, b: sft } } }\n  sft: {}\n")
    assert main(["run", str(path)]) == 2
    assert "models.0.model" in capsys.readouterr().err
