"""What differs since a stage last ran, in words; the status of each stage; early cut-off; what --only, --force do."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from accord.cli import main
from accord.pipeline.status import duration, time_left
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

STAGES_YAML = """
stages:
  dpo: { inputs: { model.base_model: sft, data.train: demo } }
  sft: { inputs: { model.base_model: base, data.train: demo } }
  demo: {}
  base: { inputs: { data.train: demo } }
"""
Shows = Callable[..., str]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stages that write their seed and the digests of their inputs; the names of those that ran."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(STAGES_YAML)
    names: list[str] = []

    def train(config: Any, run: Run) -> dict[str, float]:
        names.append(run.name)
        run.open_folders()
        assert set(run.sources) == set(run.parents)
        assert run.settings["seed"] == config.seed
        assert "log_every" not in run.settings
        if run.name == "demo":
            for sort in ("base", "sft", "preferences"):
                (run.directory / f"{sort}.jsonl").write_text(f"{config.seed}\n")
        else:
            (run.directory / "model").mkdir(exist_ok=True)
            learned = [config.training.learning_rate, sorted(run.parents.values())]
            (run.directory / "model" / "config.json").write_text(json.dumps(learned))
        return {"loss": 1.0}

    module = ModuleType("stages_of_why")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind, row in STAGE_KINDS.items():
        stub = replace(row, function_path=f"{module.__name__}:train", version=1)
        monkeypatch.setitem(STAGE_KINDS, kind, stub)
    return names


@pytest.fixture
def shows(capsys: pytest.CaptureFixture[str]) -> Shows:
    def command(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return command


def test_an_unchanged_stage_has_no_reason_to_run(ran: list[str], shows: Shows) -> None:
    assert "it has not run yet" in shows("why", "sft", "p.yaml")
    main(["run", "p.yaml"])
    assert ran == ["demo", "base", "sft", "dpo"]
    said = shows("why", "sft")  # the file is known by now
    assert said.startswith("sft is up to date: nothing changed since it ran (0 s, 0 s ago)\n")
    assert said.endswith("its last run was because:\n  it has not run yet\n")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("sft.training.learning_rate=0.5", "setting training.learning_rate: 0.0001 -> 0.5"),
        ("sft.seed=3", "setting seed: 0 -> 3"),
        ("sft.training.schedule=cosine", "setting training.schedule: 'constant' -> 'cosine'"),
    ],
)
def test_a_changed_setting_is_named(ran: list[str], shows: Shows, word: str, reason: str) -> None:
    main(["run", "p.yaml"])
    assert shows("why", "sft", word) == f"sft would run:\n  {reason}\n"
    main(["run", "p.yaml", word])
    said = shows("why", "sft")  # with the overrides it last ran with
    assert said.startswith("sft is up to date: nothing changed")
    assert said.endswith(f"its last run was because:\n  {reason}\n")


def test_what_changes_no_results_is_no_reason(ran: list[str], shows: Shows) -> None:
    main(["run", "p.yaml"])
    assert "is up to date" in shows("why", "sft", "sft.log_every=1", "sft.device=cpu")


def test_a_changed_input_is_named(ran: list[str], shows: Shows) -> None:
    main(["run", "p.yaml"])
    rows = Path("checkpoints/rlhf/demo/sft.jsonl")
    rows.write_text("other\n")
    assert shows("why", "sft") == f"sft would run:\n  input data.train changed (new content of {rows})\n"
    said = shows("why", "dpo")
    assert said.startswith("dpo may run: nothing of its own changed since it ran")
    assert "upstream out of date: sft" in said
    Path("own.jsonl").write_text("own\n")
    text = STAGES_YAML.replace("model.base_model: base, data.train: demo", "model.base_model: base")
    Path("p.yaml").write_text(text.replace("base } }\n", "base }, set: { data.train: own.jsonl } }\n", 1))
    assert f"input data.train changed ({rows} -> own.jsonl)" in shows("why", "sft")


def test_a_changed_version_and_a_missing_output_are_named(
    ran: list[str], shows: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["run", "p.yaml"])
    ran.clear()
    for child in Path("checkpoints/rlhf/base/model").iterdir():
        child.unlink()
    Path("checkpoints/rlhf/base/model").rmdir()
    assert shows("why", "base") == "base would run:\n  its output model is missing\n"
    main(["run", "p.yaml"])
    assert ran == ["base"]  # the output is the same, so nothing after it runs
    row = STAGE_KINDS["dpo"]
    monkeypatch.setitem(STAGE_KINDS, "dpo", replace(row, version=row.version + 1))
    assert shows("why", "dpo") == "dpo would run:\n  the version of the stage 'dpo' changed: 1 -> 2\n"


def test_a_forced_stage_with_the_same_output_reruns_nothing_after_it(ran: list[str], shows: Shows) -> None:
    main(["run", "p.yaml"])
    ran.clear()
    main(["run", "p.yaml", "--force", "base"])
    assert ran == ["base"]
    assert shows("why", "base").endswith("its last run was because:\n  it was forced\n")
    main(["run", "p.yaml", "base.training.learning_rate=1"])  # and where something else comes out, it does not
    assert ran == ["base", "base", "sft", "dpo"]


def test_only_runs_the_named_stages(ran: list[str], shows: Shows, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "p.yaml", "--only", "sft"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "accord: --only sft: sft takes base and demo, which are not done; name them too, or leave --only out.\n"
    )
    assert ran == []
    assert main(["run", "p.yaml", "--only", "base,demo", "--only", "sft"]) == 0
    assert ran == ["demo", "base", "sft"]
    assert not Path("checkpoints/rlhf/results.json").exists()
    said = shows("run", "p.yaml", "--only", "dpo", "--set", "sft.seed=5")
    assert "sft is used as it is: setting seed: 0 -> 5" in said
    assert ran == ["demo", "base", "sft", "dpo"]


def test_a_dry_run_runs_nothing(ran: list[str], shows: Shows) -> None:
    said = shows("run", "p.yaml", "--dry-run")
    assert said.endswith("4 of 4 stages would run; nothing was run\n")
    assert not Path("checkpoints").exists()
    main(["run", "p.yaml"])
    ran.clear()
    said = shows("run", "p.yaml", "--dry-run", "base.seed=9", "--force", "demo")
    assert [line.split()[:3] for line in said.splitlines()[:4]] == [
        ["·", "would", "run"],
        ["·", "would", "run"],
        ["?", "may", "run"],
        ["?", "may", "run"],
    ]
    assert "2 of 4 stages would run, and 2 more if their inputs change; nothing was run" in said
    assert ran == []
    assert "0 of 4 stages would run; nothing was run" in shows("run", "p.yaml", "--dry-run")


def test_status_and_logs_know_the_file_that_ran_last(ran: list[str], shows: Shows) -> None:
    assert main(["status"]) == 2
    main(["run", "p.yaml", "out=a", "logs=b"])
    said = shows("status", "out=a")
    assert said.splitlines()[0] == "p.yaml in a"
    assert said.count("✓ done") == 4
    Path("b/sft/sft.log").write_text("what it said\n")
    assert shows("logs", "sft", "out=a") == "what it said\n"
    assert shows("logs", "sft", "-f", "out=a") == "what it said\n"  # it does not run, so there is nothing to wait for
    assert main(["logs", "stf", "out=a"]) == 2


def test_clean_lists_asks_and_leaves_what_is_named(
    ran: list[str], shows: Shows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main(["run", "p.yaml"])
    assert "nothing to remove" in shows("clean")
    (tmp_path / "checkpoints/rlhf/mine").mkdir()  # without a record of ours it is not listed
    Path("p.yaml").write_text("stages: { demo: {}, sft: { set: { model.base_model: checkpoints/rlhf/base } } }\n")
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    said = shows("clean", "p.yaml")
    assert "checkpoints/rlhf/dpo" in said
    assert "logs/rlhf/dpo" in said
    assert "checkpoints/rlhf/base" not in said  # named by its path
    assert "nothing was removed" in said
    assert Path("checkpoints/rlhf/dpo").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert "removed 2" in shows("clean", "p.yaml")
    assert sorted(p.name for p in Path("checkpoints/rlhf").iterdir() if p.is_dir()) == ["base", "demo", "mine", "sft"]
    assert not Path("logs/rlhf/dpo").exists()


def test_settings_that_a_stage_no_longer_has_are_one_sentence(ran: list[str], shows: Shows) -> None:
    """A folder of an earlier version, whose configs had every policy's settings."""
    main(["run", "p.yaml"])
    path = Path("checkpoints/rlhf/sft/done.json")
    record = json.loads(path.read_text())
    for removed, words in (
        ({"x": 1, "y": {"z": 2}}, "  setting x: 1 -> absent\n  setting y.z: 2 -> absent\n"),
        (dict.fromkeys("pqrst", 0), "  5 settings were removed, among them p, q, r\n"),
    ):
        old = {"key": "of another version", "settings": {**record["settings"], **removed, "seed": 7}}
        path.write_text(json.dumps({**record, **old}))
        assert sorted(shows("why", "sft").splitlines()[1:]) == sorted(f"{words}  setting seed: 7 -> 0".splitlines())


def test_time_left_and_durations_are_in_words() -> None:
    beat = {"step": 30, "first": 10, "total": 110, "begun": 100.0, "updated": 140.0}
    assert time_left(beat) == pytest.approx(40 / 20 * 80)
    assert time_left({**beat, "step": 10}) is None
    assert [duration(s) for s in (0, 40, 99.4, 150, 4200, 90000, 400000)] == [
        "0 s", "40 s", "99 s", "2 min", "70 min", "25 h 0 min", "5 days"
    ]  # fmt: skip
