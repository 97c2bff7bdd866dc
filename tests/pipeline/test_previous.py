"""Results of other settings are moved whole, come back when their key is wanted again, and none is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from accord.cli import main
from accord.config.load import load
from accord.errors import Interrupted, UserError
from accord.io import atomic
from accord.pipeline.previous import PREVIOUS, is_worth_keeping, place_of
from accord.pipeline.stage import Outcome, run_stage
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

CONFIGS = Path(__file__).parents[2] / "configs"
Act = Callable[[Run], None]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, bool]]:
    """A stage ``demo`` that writes its seed to result.txt; (seed, whether it resumed) of every run of it."""
    monkeypatch.chdir(tmp_path)
    runs: list[tuple[int, bool]] = []

    def run_demo(config: Any, run: Run) -> dict[str, float]:
        run.begin(2)
        runs.append((config.seed, run.resume))
        for act in acts.pop(config.seed, ()):
            act(run)
        (run.directory / "result.txt").write_text(str(config.seed))
        run.say(f"said {config.seed}")
        return {"loss": float(config.seed)}

    module = ModuleType("stage_of_previous")
    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STAGE_KINDS, "demo", replace(STAGE_KINDS["demo"], function_path="stage_of_previous:run_demo"))
    acts.clear()
    return runs


acts: dict[int, list[Act]] = {}
Ran = list[tuple[int, bool]]


def run(seed: int, *overrides: str, resume: bool = True, reuse: bool = True, force: bool = False) -> Outcome:
    config = load(STAGE_KINDS["demo"].settings, None, ["out=out", "logs=logs", f"seed={seed}", *overrides])
    return run_stage("demo", config, resume=resume, reuse=reuse, force=force)


def aside() -> set[str]:
    return {p.name for p in Path("out", PREVIOUS).iterdir()} if Path("out", PREVIOUS).is_dir() else set()


def stops(run: Run) -> None:
    (run.directory / "state.pt").write_text("step 1")
    raise Interrupted("demo: stopped at step 1 of 2; the state is saved.")


def fails(run: Run) -> None:
    raise UserError("the disk is full")


def test_another_key_moves_the_finished_stage_whole_and_its_own_key_takes_it_back(
    ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(1)
    place = place_of(Path("out/demo"), first.done["key"])
    Path("out/demo/notes.txt").write_text("mine")
    second = run(2)
    assert aside() == {place.name}
    assert f"demo: the finished run here is moved to {place}, and comes back when" in capsys.readouterr().out
    assert (place / "result.txt").read_text() == "1"
    assert (place / "notes.txt").read_text() == "mine"
    assert json.loads((place / "done.json").read_text()) == first.done
    assert "said 1" in (place / "logs" / "demo.log").read_text()
    assert "said 1" not in Path("logs/demo/demo.log").read_text()
    assert Path("out/demo/result.txt").read_text() == "2"

    again = run(1)
    assert (again.skipped, again.done) == (True, first.done)
    assert f"demo: its finished run with these settings is taken back from {place}" in capsys.readouterr().out
    assert ran == [(1, False), (2, False)]
    assert sorted(p.name for p in Path("out/demo").iterdir()) == ["config.yaml", "done.json", "notes.txt", "result.txt"]
    assert "said 1" in Path("logs/demo/demo.log").read_text()
    assert aside() == {f"demo-{second.done['key']}"}
    assert not any((Path("out") / PREVIOUS / name / "lock.json").exists() for name in aside())


def test_a_single_command_takes_back_too_and_runs_again_where_its_result_stands(ran: Ran) -> None:
    words = ["demo", "out=out", "logs=logs"]
    for seed in (1, 2, 1):
        assert main([*words, f"seed={seed}"]) == 0
    assert ran == [(1, False), (2, False)]
    assert main([*words, "seed=1"]) == 0
    assert ran == [(1, False), (2, False), (1, False)]


def test_the_same_settings_again_replace_the_result_only_once_they_are_finished(ran: Ran) -> None:
    done = run(1).done
    acts[1] = [fails]
    with pytest.raises(UserError, match="the disk is full"):
        run(1, resume=False, reuse=False)
    assert aside() == {f"demo-{done['key']}"}
    assert run(1, force=True).done["key"] == done["key"]
    assert aside() == set()


def test_a_file_that_somebody_put_beside_a_result_is_kept(ran: Ran) -> None:
    key = run(1).done["key"]
    Path("out/demo/model.gguf").write_text("exported")
    run(1, force=True)
    assert (place_of(Path("out/demo"), key) / "model.gguf").read_text() == "exported"


def test_an_interrupted_run_is_moved_and_resumes_when_it_is_wanted_again(
    ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    acts[1] = [stops]
    with pytest.raises(Interrupted):
        run(1)
    run(2)
    assert "demo: the interrupted run here is moved to" in capsys.readouterr().out
    acts[1] = [lambda run: (run.directory / "state.pt").rename(run.directory / "seen.txt") and None]
    assert not run(1).skipped
    assert "demo: its interrupted run with these settings is taken back from" in capsys.readouterr().out
    assert ran == [(1, False), (2, False), (1, True)]
    assert Path("out/demo/seen.txt").read_text() == "step 1"


def test_without_resume_an_interrupted_run_of_these_settings_starts_again(ran: Ran) -> None:
    acts[1] = [stops]
    with pytest.raises(Interrupted):
        run(1)
    run(2)
    run(1, resume=False, reuse=False)
    assert ran == [(1, False), (2, False), (1, False)]
    assert len(aside()) == 1  # the result of seed 2; the state of seed 1 went with its end


def test_a_finished_run_is_never_replaced_by_an_interrupted_one(ran: Ran) -> None:
    key = run(1).done["key"]
    acts[1] = [stops]
    with pytest.raises(Interrupted):
        run(1, force=True)
    run(2)
    assert json.loads((place_of(Path("out/demo"), key) / "done.json").read_text())["key"] == key
    assert run(1).skipped


def test_a_folder_without_its_record_is_kept_too(ran: Ran) -> None:
    for number in (1, 2):
        run(number)
        Path("out/demo/done.json").unlink()
    run(3)
    assert aside() == {"demo-unknown-1", "demo-unknown-2"}


def test_a_damaged_record_is_named_and_nothing_moves(ran: Ran) -> None:
    run(1)
    Path("out/demo/done.json").write_text('{"key": ')
    with pytest.raises(UserError, match=r"out/demo/done\.json: .* restore it, or remove it to run this stage again"):
        run(2)
    assert aside() == set()


def test_a_folder_whose_outputs_are_missing_does_not_come_back(ran: Ran) -> None:
    key = run(1).done["key"]
    run(2)
    (place_of(Path("out/demo"), key) / "result.txt").unlink()
    assert not run(1).skipped
    assert ran == [(1, False), (2, False), (1, False)]


def test_a_kill_between_the_two_moves_loses_neither_result_nor_logs(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs are already in the folder, and the folder is still in its place."""
    run(1)

    class Killed(BaseException):
        pass

    moves: list[Path] = []

    def move(source: Path, target: Path) -> None:
        if moves:
            raise Killed
        moves.append(target)
        atomic.move_folder(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("accord.pipeline.previous.move_folder", move)
        with pytest.raises(Killed):
            run(2)
    assert not Path("logs/demo/demo.log").exists()
    assert run(1).skipped
    assert "said 1" in Path("logs/demo/demo.log").read_text()
    assert not Path("out/demo/logs").exists()


def test_a_full_disk_at_the_beginning_leaves_the_earlier_result_in_its_place(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    done = run(1).done
    with monkeypatch.context() as patch:
        patch.setattr("accord.pipeline.stage.write_json", full)
        with pytest.raises(UserError, match=r"begun\.json: could not be written, since the disk is full"):
            run(2)
    assert json.loads(Path("out/demo/done.json").read_text()) == done
    assert "said 1" in Path("logs/demo/demo.log").read_text()
    assert aside() == set()
    assert not Path("out/demo/lock.json").exists()
    assert run(1).skipped


def test_results_and_logs_in_one_folder_move_once(ran: Ran) -> None:
    run(1, "logs=out")
    run(2, "logs=out")
    assert run(1, "logs=out").skipped
    assert "said 1" in Path("out/demo/demo.log").read_text()


def test_logs_on_another_file_system_are_copied(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def refuse(source: Any, target: Any) -> None:
        if str(source) == "logs/demo" and str(target) == "out/demo/logs":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    key = run(1).done["key"]
    monkeypatch.setattr(os, "replace", refuse)
    run(2)
    assert "said 1" in (place_of(Path("out/demo"), key) / "logs" / "demo.log").read_text()
    assert "said 2" in Path("logs/demo/demo.log").read_text()
    assert sorted(p.name for p in Path("logs").iterdir()) == ["demo"]


def test_status_clean_and_dry_runs_know_what_is_aside(
    ran: Ran, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: "no")
    Path("p.yaml").write_text("out: out\nlogs: logs\nstages:\n  demo: {}\n")
    for seed in (1, 2):
        assert main(["run", "p.yaml", f"demo.seed={seed}"]) == 0
    capsys.readouterr()
    assert main(["run", "p.yaml", "demo.seed=1", "--dry-run"]) == 0
    (name,) = aside()
    assert f"it would be taken back from out/.previous/{name}" in " ".join(capsys.readouterr().out.split())
    assert main(["clean", "p.yaml", "demo.seed=2"]) == 0
    assert f"out/.previous/{name}" in capsys.readouterr().out
    assert aside() == {name}
    assert main(["run", "p.yaml", "demo.seed=1"]) == 0
    assert len(ran) == 2
    assert main(["clean", "p.yaml", "demo.seed=1", "--yes"]) == 0
    assert aside() == set()
    assert Path("out/demo/result.txt").read_text() == "1"


def test_what_is_worth_keeping(tmp_path: Path) -> None:
    assert not is_worth_keeping(tmp_path / "absent")
    for name in ("begun.json", "failed.json", "config.yaml", "lock.json", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert not is_worth_keeping(tmp_path)
    (tmp_path / "sft_epoch_0.pt").write_text("")
    assert is_worth_keeping(tmp_path)


# ------------------------------------------------------------------ for real
SMALL = ("model.d_model=32", "model.n_layers=1", "log_every=1", "threads=1")
SPECIFIED = (
    ("sft", "rlhf_sft.yaml", ("model.base_model=transformer", "data.limit=8")),
    ("reward", "reward_model.yaml", ("data.limit=8", "model.input_dim=32")),
    ("ppo", "ppo_train.yaml", ("training.total_timesteps=16", "model.obs_dim=32", "sampling.max_new_tokens=4")),
    ("dpo", "dpo_train.yaml", ("data.limit=8",)),
)
"""The four specified commands, their configs and what makes them small."""
PIPELINE = """
threads: 1
stages:
  demo: { set: { base_rows: 60, sft_rows: 16, preference_rows: 12 } }
  base: { inputs: { data.train: demo }, set: { model: { base_model: transformer, d_model: 32, n_layers: 1 }, data.limit: 8 } }
  sft: { inputs: { model.base_model: base, data.train: demo }, set: { data.limit: 8, training.learning_rate: 1.0e-3 } }
  reward: { inputs: { model.base_model: sft, data.train: demo }, set: { data.limit: 8, model.kind: language } }
  dpo: { inputs: { model.base_model: sft, data.train: demo }, set: { data.limit: 8, training.beta: 0.2 } }
  ppo:
    inputs: { model.base_model: sft, reward.source: reward, prompts: demo }
    set:
      model.policy: language
      sampling.max_new_tokens: 4
      training: { iterations: 1, replies: 4, batch_size: 4, num_epochs: 1 }
"""


def test_the_specified_commands_and_the_pipeline_in_turn_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's single stages, the whole pipeline, and both again, in one folder."""
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PIPELINE)
    out = Path("checkpoints/rlhf")

    def specified() -> None:
        for kind, file, overrides in SPECIFIED:
            assert main([kind, "--config", str(CONFIGS / file), *SMALL, *overrides]) == 0

    def finished() -> dict[str, str]:
        """Every finished stage by its key, with the digests of its outputs, wherever it stands."""
        records = [json.loads(p.read_text()) for p in [*out.glob("*/done.json"), *out.glob(".previous/*/done.json")]]
        return {f"{done['kind']} {done['key']}": json.dumps(done["outputs"]) for done in records}

    assert main(["run", "p.yaml", "--only", "demo,base"]) == 0
    specified()
    first = finished()
    assert main(["run", "p.yaml"]) == 0
    both = finished()
    assert first.items() < both.items()
    assert {path.name.rpartition("-")[0] for path in (out / PREVIOUS).iterdir()} == {"sft", "reward", "ppo", "dpo"}
    capsys.readouterr()
    specified()
    assert capsys.readouterr().out.count("its finished run with these settings is taken back from") == 4
    assert finished() == both
    assert main(["run", "p.yaml"]) == 0
    assert capsys.readouterr().out.count("is taken back from") == 4
    assert finished() == both
    assert not any("begun.json" in path.name for path in out.rglob("*"))
