"""A command under torchrun: which rank runs it, and what it refuses there."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.cli import main


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rank 0 of 2, which no other process joins."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_command_that_runs_no_stage_runs_on_rank_0_alone_and_waits_for_nobody(
    rank: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["status", f"out={tmp_path / 'none'}"]
    assert main(words) == 2
    assert "no pipeline has run here" in capsys.readouterr().err
    rank.setenv("RANK", "1")
    assert main(words) == 0
    assert capsys.readouterr() == ("", "")


def test_stages_side_by_side_are_refused_under_a_launcher(
    rank: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rank.setenv("WORLD_SIZE", "1")
    pipeline = str(Path(__file__).parents[2] / "configs" / "pipeline.yaml")
    assert main(["run", pipeline, "--jobs", "2", "--only", "none-of-these"]) == 2
    assert "--jobs 2: under torchrun one stage after another runs on all ranks" in capsys.readouterr().err
