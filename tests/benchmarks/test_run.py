"""benchmarks/run.py: what fails, what is shown as unmet, and what a quick run leaves alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with recorded figures of its own: ``sft`` 4.00 and ``ppo`` 2.00, in full and in quick runs."""
    spec = importlib.util.spec_from_file_location("benchmarks_run", ROOT / "benchmarks" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "performance.md"
    head = "| row | ratio | spread |\n|---|---|---|\n"
    page.write_text(f"# Performance\n\n{head}| sft | 4.00 × | 3.9 – 4.1 |\n| ppo | 2.00 × | 1.9 – 2.1 |\n")
    monkeypatch.setattr(module, "PAGE", page)
    quick = tmp_path / "quick.json"
    quick.write_text(json.dumps({"sft": 4.0, "ppo": 2.0}))
    monkeypatch.setattr(module, "QUICK", quick)
    monkeypatch.setattr(module, "KEPT", tmp_path / "bench" / "rows.jsonl")
    return module


def row(name: str, ratio: float, at_least: float = 1.0, **more: Any) -> dict[str, Any]:
    found = {"row": name, "ratio": ratio, "low": ratio, "high": ratio, "at_least": at_least, "aim": 9.0}
    return {**found, "met": ratio >= at_least, "file": "startup.py", **more}


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], *options: str) -> int:
    monkeypatch.setattr(bench, "rows", lambda name, quick: rows)
    monkeypatch.setattr(bench, "gemm", lambda: 70.0)
    monkeypatch.setattr(bench, "copying", lambda: 16.0)
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "startup.py", *options])
    code: int = bench.main()
    return code


def test_the_recorded_figures_are_read_from_the_page_that_a_full_run_writes(bench: ModuleType) -> None:
    rows = [row("sft", 4.126), row("ppo", 0.5), {"row": "dpo.py", "broken": True, "met": False, "file": "startup.py"}]
    assert bench.recorded(bench.page(rows)) == {"sft": 4.13, "ppo": 0.5}


def test_a_full_run_keeps_the_sections_that_other_commands_fill(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = "\n## Several processes\n\n| a | b |\n"
    bench.PAGE.write_text(bench.PAGE.read_text() + rest)
    run(bench, monkeypatch, [row("sft", 4.0)])
    assert bench.PAGE.read_text().endswith(rest)
    assert bench.PAGE.read_text().count("## Several processes") == 1


def test_this_repository_records_every_row_of_a_quick_run(bench: ModuleType) -> None:
    full = bench.recorded((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    quick = json.loads((ROOT / "benchmarks" / "quick.json").read_text(encoding="utf-8"))
    assert len(full) == 40
    assert len(quick) == 11
    assert quick.keys() <= full.keys()
    assert min(quick.values()) > 1


@pytest.mark.parametrize(("ratio", "fails"), [(4.0, False), (9.0, False), (3.41, False), (3.39, True), (0.1, True)])
def test_a_row_fails_where_it_is_more_than_15_percent_below_its_recorded_figure(
    bench: ModuleType, ratio: float, fails: bool
) -> None:
    assert bool(bench.fault(row("sft", ratio, at_least=0.0), 4.0)) is fails


def test_one_round_near_the_recorded_figure_is_enough(bench: ModuleType) -> None:
    assert not bench.fault(row("sft", 3.0, high=3.5), 4.0)
    assert bench.fault(row("sft", 3.0, high=3.3), 4.0)


def test_a_row_under_its_bar_is_unmet_and_does_not_fail(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench, monkeypatch, [row("sft", 4.0, at_least=12.0), row("ppo", 2.0)], "--quick") == 0
    shown = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines()}
    assert shown["sft"] == "| sft | 4.00 × | 4.00 × | 4.00 – 4.00 | 12 | **unmet** |  |"
    assert shown["ppo"] == "| ppo | 2.00 × | 2.00 × | 2.00 – 2.00 | 1 | met |  |"


def test_a_row_that_fell_fails_the_command_even_where_it_is_over_its_bar(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bench, monkeypatch, [row("sft", 3.0), row("ppo", 2.0)], "--quick") == 1
    out = capsys.readouterr().out
    assert "| 1 | met | **25% or more below the recorded figure** |" in out
    assert "failed: sft\n" in out


def test_a_comparison_that_broke_off_fails(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"row": "dpo.py", "broken": True, "met": False, "file": "startup.py"}
    assert run(bench, monkeypatch, [row("sft", 4.0), broken], "--quick") == 1


def test_sides_that_do_not_compute_the_same_fail_however_fast(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(bench, monkeypatch, [row("sft", 8.0, met=False)], "--quick") == 1


def test_a_new_row_is_judged_by_nothing_recorded(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(bench, monkeypatch, [row("kto", 0.2)], "--quick") == 0


def test_a_quick_run_writes_nothing(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.PAGE.read_text(), bench.QUICK.read_text()
    run(bench, monkeypatch, [row("sft", 5.0)], "--quick")
    assert (bench.PAGE.read_text(), bench.QUICK.read_text()) == before
    assert not bench.KEPT.parent.exists()


def test_a_full_run_writes_the_page(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(bench, monkeypatch, [row("sft", 5.0), row("ppo", 2.5, at_least=3.0)]) == 0
    assert bench.recorded(bench.PAGE.read_text()) == {"sft": 5.0, "ppo": 2.5}
    assert "| ppo | 2.50 × | 2.50 – 2.50 | 3 | 9 | **unmet** |" in bench.PAGE.read_text()


def test_a_quick_run_records_its_figures_only_when_asked_to(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"row": "dpo.py", "broken": True, "met": False, "file": "startup.py"}
    assert run(bench, monkeypatch, [row("sft", 5.128), broken], "--quick", "--record") == 1
    assert json.loads(bench.QUICK.read_text()) == {"sft": 5.13, "ppo": 2.0}
    with pytest.raises(SystemExit):
        run(bench, monkeypatch, [row("sft", 5.0)], "--record")
