"""A stage's picture: when it is drawn, and from what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.plots.stage import StagePicture


def test_it_is_drawn_at_once_then_only_as_often_as_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each drawing takes a second here, so that the next one may come after a hundred."""
    now = [0.0]
    monkeypatch.setattr("accord.plots.stage.time.monotonic", lambda: now[0])
    picture, drawn = StagePicture(tmp_path, "sft"), []

    def draw() -> bool:
        drawn.append(now[0])
        now[0] += 1
        return True

    monkeypatch.setattr(picture, "draw", draw)
    for _ in range(250):
        picture.update()
        now[0] += 1
    assert drawn == [0.0, 100.0, 200.0]


def test_without_curves_there_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "dropped": 1.0}) + "\n")
    assert not StagePicture(tmp_path, "pairs").draw()
    assert not (tmp_path / "pairs.svg").exists()
    assert not StagePicture(tmp_path / "nowhere", "demo").draw()


def test_a_loss_that_became_null_does_not_cost_the_picture(tmp_path: Path) -> None:
    """A run whose loss is not finite any more is one whose curves are looked at; NaN is null in the log."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "loss": null}\n'
    )
    assert StagePicture(tmp_path, "sft").draw()
    assert "after step 3<" in (tmp_path / "sft.svg").read_text()


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    assert StagePicture(tmp_path, "sft").draw()
    assert "after step 7<" in (tmp_path / "sft.svg").read_text()
