"""The live table: its rows while a stage runs, with too many stages for the screen, and plain lines elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from accord.config.data import DemoConfig
from accord.pipeline import view as module
from accord.pipeline.plan import Planned
from accord.pipeline.stage import Outcome
from accord.pipeline.status import final_metrics, running_metrics
from accord.pipeline.view import Lines, LiveTable, _Row, fitted, view_for
from accord.runtime.progress_file import ProgressFile


def table(names: list[str], out: Path) -> LiveTable:
    planned = [Planned(name, "ppo", DemoConfig(name=name)) for name in names]
    return LiveTable(planned, {name: out / name for name in names})


def shown(view: LiveTable, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=120, height=height, force_terminal=False)
    console.print(view.table())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_every_state_has_its_line(tmp_path: Path) -> None:
    view = table(["a", "b", "c", "d", "e"], tmp_path)
    (tmp_path / "b").mkdir()
    view.ended("a", Outcome("a", True, {"metrics": {"loss": 0.5, "score": 2.5, "kl": 0.1}, "seconds": 3}))
    view.started("b")
    view.failed("c", "no room")
    view.not_run("d", "c failed")
    progress = ProgressFile(tmp_path / "b", 0, 200)
    progress.metrics |= {"rollout/score": 1.5, "rollout/kl": 0.25}
    progress.update(50, {"loss": 3.0}, last=True)
    progress.close()
    lines = shown(view)
    assert lines[0].startswith("✓  a")
    assert lines[0].endswith("unchanged  score (last rollout) 2.5  kl (last rollout) 0.1")
    assert lines[1].startswith("▶  b")
    assert "50/200" in lines[1]
    assert " left  score 1.5  kl 0.25  loss 3" in lines[1]
    assert lines[2].endswith("no room")
    assert lines[3].endswith("c failed")
    assert "pending" in lines[4]


def test_progress_of_an_earlier_run_is_not_shown(tmp_path: Path) -> None:
    """The file of a killed run is not shown for the run that has just begun."""
    (tmp_path / "a").mkdir()
    ProgressFile(tmp_path / "a", 0, 200).close()
    view = table(["a"], tmp_path)
    view.started("a")
    assert "/200" not in shown(view)[0]


def test_more_stages_than_lines_fit_on_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"s{i}" for i in range(40)]
    view = table(names, tmp_path)
    monkeypatch.setattr(module, "console", Console(file=io.StringIO(), width=120, height=20))
    for name in names[:25]:
        view.ended(name, Outcome(name, True, {"metrics": {}, "seconds": 0}))
    view.started("s25")
    lines = shown(view)
    assert len(lines) <= 18
    assert lines[0].endswith("… 23 above")
    assert any(line.startswith("▶  s25") for line in lines)
    assert lines[-1].endswith("more")


def test_without_a_terminal_there_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = view_for([], {})
    assert isinstance(view, Lines)
    with view:
        view.started("a")
        view.ended("a", Outcome("a", False, {"seconds": 3.2}))
        view.failed("b", "a [bold] word")
        view.not_run("c", "b failed")
        view.waits("d", "d: waiting for 2 more votes.")
    assert (
        capsys.readouterr().out
        == "✓ a: done in 3 s\n✗ b: failed: a [bold] word\n- c: not run, because b failed\n… d: waiting for 2 more votes.\n"
    )


@pytest.mark.parametrize(
    ("kind", "running", "final", "words"),
    [
        (
            "sft",
            {"heldout/loss": 2.0, "loss": 1.5, "nll": 1.5, "grad_norm": 9.0},
            {"loss": 1.0, "nll": 1.0, "heldout/loss": 1.25},
            ("heldout/loss 2  loss 1.5", "heldout/loss 1.25"),
        ),
        (
            "dpo",
            {"loss": 0.7, "accuracy": 0.5, "grad_norm": 9.0},
            {"loss": 0.1, "accuracy": 1.0},
            ("loss 0.7  accuracy 0.5", "accuracy (last step) 1"),
        ),
        (
            "ppo",
            {"rollout/score": 1.5, "rollout/kl": 0.25, "loss": 3.0},
            {"score": 2.0, "kl": 0.5, "length": 9.0},
            ("score 1.5  kl 0.25  loss 3", "score (last rollout) 2  kl (last rollout) 0.5"),
        ),
        ("compare", {"gold": 0.5}, {"sft": 0.5, "ppo": 1.0}, ("gold 0.5", "sft 0.5  ppo 1")),
        ("pairs", {"dropped": 4.0}, {"preferences": 90.0}, ("dropped 4", "preferences 90")),
    ],
)
def test_a_stage_shows_its_headline(
    kind: str, running: dict[str, float], final: dict[str, float], words: tuple[str, str]
) -> None:
    assert (running_metrics(kind, running), final_metrics(kind, final)) == words


def test_at_80_columns_marks_bars_and_figures_stay_and_only_names_are_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["base", "a_long_grid_of_rates_0.0003_0.1", "a_long_grid_of_rates_0.0003_0.2", "a" * 90]
    view = table(names, tmp_path)
    view.rows = {name: _Row("running") for name in names}
    progress = {"step": 40, "total": 168, "first": 0, "begun": 0.0, "updated": 100.0}
    metrics = {"score": 0.8, "kl": 1.2345, "length": 33.4}
    monkeypatch.setattr("accord.pipeline.view.read_progress", lambda folder: {**progress, "metrics": metrics})
    lines = []
    for width in (80, 120):
        monkeypatch.setattr("accord.pipeline.view.console", Console(width=width, height=24, file=io.StringIO()))
        writer = Console(width=width, file=io.StringIO(), color_system=None)
        writer.print(view.table())
        lines = writer.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 4
        assert all(cell_len(line) <= width for line in lines)
        assert all(
            line.startswith("▶ ") and "━" in line and "40/168  5 min left" in line and "kl 1.23" in line
            for line in lines
        )
        assert [line.split()[1][-3:] for line in lines[1:3]] == ["0.1", "0.2"]  # points of a grid differ at their end
    assert fitted("a_long_grid-lr=0.0003", 9) == "a_lo…0003"
    assert fitted("報酬模型", 5) == "報…型"
    assert fitted("short", 5) == "short"
