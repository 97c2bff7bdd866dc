"""Runs that a user names: where their metrics are, how they are called, and which are seeds of one another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from accord.errors import UserError
from accord.plots.runs import curves_of, find, read_runs


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def log(folder: str, name: str = "metrics.jsonl", values: int = 2) -> Path:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in range(values)))
    return path


def labels(*paths: Path, each: bool = False) -> list[str]:
    return [curve.label for curve in curves_of(read_runs([str(p) for p in paths], Path("logs")), each=each)]


def test_a_run_is_found_by_stage_folder_results_and_file() -> None:
    path = log("runs/mine/logs/ppo")
    results = Path("runs/mine/ppo")
    results.mkdir()
    (results / "config.yaml").write_text("logs: runs/mine/logs\nname: ppo\n")
    for name in ("ppo", "runs/mine/logs/ppo", "runs/mine/ppo", str(path)):
        assert find(name, Path("runs/mine/logs")) == path
    assert find(str(log("elsewhere", "other.jsonl")), Path("logs")) == Path("elsewhere/other.jsonl")


def test_a_result_that_was_put_aside_is_found() -> None:
    path = log("checkpoints/.previous/ppo-1234/logs")
    assert find("checkpoints/.previous/ppo-1234", Path("logs")) == path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ppo_ml", "ppo_ml: no such file or folder, and no stage in logs; did you mean 'ppo_lm'?"),
        ("xyz", "xyz: no such file or folder, and no stage in logs; logs has dpo, ppo_lm."),
        ("logs", "logs: holds the logs of several stages; name those to plot, as logs/dpo."),
        ("empty", "empty: no metrics.jsonl in it; name a stage's folder of logs or of results."),
    ],
)
def test_what_is_not_there_is_a_sentence(name: str, words: str) -> None:
    log("logs/ppo_lm")
    log("logs/dpo")
    Path("empty").mkdir()
    with pytest.raises(UserError) as error:
        find(name, Path("logs"))
    assert str(error.value) == words


def test_without_any_logs_the_option_is_named() -> None:
    with pytest.raises(UserError, match="logs has no logs, name their folder with --logs"):
        find("ppo", Path("logs"))


def test_a_run_without_metrics_is_a_sentence_and_beside_others_none() -> None:
    empty, full = log("logs/demo", values=0), log("logs/sft")
    with pytest.raises(UserError, match=r"logs/demo/metrics.jsonl: holds no metrics yet"):
        read_runs([str(empty)], Path("logs"))
    assert labels(empty, full) == ["sft"]


def test_a_run_that_is_named_twice_is_one() -> None:
    path = log("logs/sft")
    assert labels(path, path.parent, path) == ["sft"]


def test_a_damaged_line_is_named() -> None:
    path = log("logs/sft")
    path.write_text('{"step": 1, "loss": "x"}\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"logs/sft/metrics.jsonl, row 1: "):
        read_runs([str(path)], Path("logs"))


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("logs/ppo_seed0", "logs/ppo_seed1"), ["ppo (2 seeds)"]),
        (("runs/seed0/logs/ppo", "runs/seed1/logs/ppo", "runs/seed2/logs/dpo"), ["ppo (2 seeds)", "dpo"]),
        (("runs/s0", "runs/s1"), ["runs (2 seeds)"]),
        (("a_seed-1_rate-0.1", "a_seed-2_rate-0.1", "a_seed-1_rate-0.2"), ["a_rate-0.1 (2 seeds)", "a_rate-0.2"]),
        (("logs/lag0", "logs/lag1"), ["lag0", "lag1"]),
        (("logs/reseed0", "logs/reseed1"), ["reseed0", "reseed1"]),
        (("x/logs/ppo", "y/logs/ppo"), ["x/ppo", "y/ppo"]),
    ],
)
def test_seeds_of_one_name_are_one_curve(folders: tuple[str, ...], expected: list[str]) -> None:
    assert labels(*(log(folder) for folder in folders)) == expected


def test_on_request_every_seed_is_a_curve() -> None:
    assert labels(log("logs/ppo_seed0"), log("logs/ppo_seed1"), each=True) == ["ppo_seed0", "ppo_seed1"]
