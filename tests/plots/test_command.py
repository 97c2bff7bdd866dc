"""``accord plot``, from the command line to the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from accord.cli import main

REPO = Path(__file__).parents[2]
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of PPO and one of SFT in the usual folder."""
    monkeypatch.chdir(tmp_path)
    for name, metrics in (
        ("ppo_seed0", ("rollout/score", "rollout/kl")),
        ("ppo_seed1", ("rollout/score", "rollout/kl")),
        ("sft", ("loss",)),
    ):
        path = tmp_path / "logs" / "rlhf" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        rows = [{"step": s, **{m: s * (i + 1.0) for i, m in enumerate(metrics)}} for s in range(5)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["plot", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def texts(path: str = "plot.svg") -> list[str]:
    return [str(e.text) for e in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_a_stage_is_drawn(say: Say) -> None:
    assert say("sft") == (0, "wrote plot.svg: 1 panel, 1 curve of 1 run\n", "")
    assert {"sft", "loss", "optimizer step"} <= set(texts())


def test_runs_are_drawn_over_each_other_with_seeds_as_one(say: Say) -> None:
    code, out, err = say("ppo_seed0", "ppo_seed1", "sft", "--metric", "score", "--metric", "loss", "--out", "a/b.svg")
    assert (code, out) == (0, "wrote a/b.svg: 2 panels, 2 curves of 3 runs\n")
    assert err.splitlines() == [
        "accord: note: ppo (2 seeds) has no loss.",
        "accord: note: sft has no rollout/score.",
    ]
    assert {"ppo (2 seeds)", "sft", "score, loss", "lines: mean of the seeds; bands: lowest and highest"} <= set(
        texts("a/b.svg")
    )
    assert say("ppo_seed0", "ppo_seed1", "--each")[1].endswith("2 curves of 2 runs\n")


def test_metrics_joined_by_a_comma_share_a_panel_over_another_axis(say: Say) -> None:
    assert say("ppo_seed0", "--metric", "score,rollout/kl", "--x", "kl", "--title", "mine")[0] == 0
    assert {"mine", "score and kl", "KL to the reference, nats per reply"} <= set(texts())


def test_smoothing_is_said_in_the_picture(say: Say) -> None:
    assert say("sft", "--smoothing", "0.9")[0] == 0
    assert "moving average with weight 0.9 of the past; faint: as logged" in texts()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sft", "--metric", "los"], "--metric los: the runs have no such metric; did you mean 'loss'?"),
        (["sft", "--metric", "zzz"], "--metric zzz: the runs have no such metric; the runs have loss."),
        (["sft", "--metric", ""], "--metric : the runs have no such metric; the runs have loss."),
        (["sft", "--x", "kl"], "--x kl: the runs have no such metric; the runs have loss."),
        (["sft", "--out", "x/a.png"], "--out x/a.png: the picture is an SVG; type --out x/a.svg."),
        (["sft", "--out", "curves"], "--out curves: the picture is an SVG; type --out curves.svg."),
        (["sft", "--out", ".svg"], "--out .svg: the picture is an SVG; type --out plot.svg."),
        (["sft", "--smoothing", "1"], "--smoothing 1: from 0 (none) to below 1."),
        (["sft", "--smoothing", "nan"], "--smoothing nan: from 0 (none) to below 1."),
        (["stf"], "stf: no such file or folder, and no stage in logs/rlhf; did you mean 'sft'?"),
        ([], "plot: RUN is missing; type accord plot RUN."),
        (["sft", "--metrics", "loss"], "plot: no option '--metrics'; did you mean '--metric'?"),
    ],
)
def test_a_mistake_is_one_sentence(say: Say, words: list[str], sentence: str) -> None:
    assert say(*words) == (2, "", f"accord: {sentence}\n")
    assert not Path("plot.svg").exists()


def test_drawing_needs_no_torch_and_no_library_of_plots() -> None:
    code = (
        "import sys; from accord.cli import main; main(['plot', 'sft']);"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'PIL', 'rich'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    out = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120, env=environment)
    assert out.splitlines() == ["wrote plot.svg: 1 panel, 1 curve of 1 run", "[]"]
