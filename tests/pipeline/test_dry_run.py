"""``--dry-run`` of one stage: the plan and the predicted memory; nothing is trained or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accord.cli import main


@pytest.fixture
def words(world: Any, tmp_path: Path) -> list[str]:
    places = [f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}", "device=cpu"]
    return ["sft", "--dry-run", f"model.base_model={world.transformer}", f"data.train={world.sft}", *places]


def test_plan_and_memory_are_shown_and_no_file_is_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "parallel.nproc=2", "parallel.strategy=fsdp"]) == 0
    shown = capsys.readouterr().out
    assert "rows / 4 a step" in shown
    assert "ddp and fsdp on 2 devices" in shown
    assert "as configured" in shown
    assert shown.splitlines()[-1] == "sft: nothing was run or written"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("kind", ["dpo", "reward", "ppo"])
def test_every_stage_that_trains_shows_its_memory(
    kind: str, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"prompts={world.prompts}", f"reward.source={world.reward}"] if kind == "ppo" else []
    data = data or [f"data.train={world.preferences}", "data.heldout_fraction=0.3"]
    places = [f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}", "device=cpu"]
    assert main([kind, "--dry-run", f"model.base_model={world.mamba}", *data, *places]) == 0
    shown = capsys.readouterr().out
    assert "predicted memory of each device in GiB" in shown
    assert shown.splitlines()[-1] == f"{kind}: nothing was run or written"
    assert not (tmp_path / "out").exists()


def test_a_missing_stage_is_named_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--dry-run", "model.base_model=mamba", f"out={tmp_path / 'out'}", f"logs={tmp_path}"]) == 2
    assert "--dry-run runs nothing, so run 'accord base' first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_a_sentence_as_without_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "data.train=nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_a_stage_without_a_plan_is_not_run_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--dry-run", f"out={tmp_path / 'out'}", f"logs={tmp_path / 'logs'}"]) == 0
    assert "demo: nothing was run or written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
