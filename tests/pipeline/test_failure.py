"""A stage that fails, is refused, runs out of disk or is killed: it is recorded in words, and the others continue."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from accord.cli import main
from accord.errors import Interrupted, UserError
from accord.pipeline.failure import in_words, moment_of, sentence
from accord.pipeline.lock import LOCK
from accord.runtime.run import Run
from accord.stage_kinds.table import STAGE_KINDS

STAGES_YAML = """
stages:
  demo: {}
  base: { inputs: { data.train: demo } }
  sft: { inputs: { model.base_model: base, data.train: demo } }
  dpo: { inputs: { model.base_model: sft, data.train: demo } }
  far: { kind: dpo, inputs: { model.base_model: dpo, data.train: demo } }
  other: { kind: sft, inputs: { model.base_model: base, data.train: demo } }
  compare: { inputs: { reference: sft, prompts: demo }, set: { models: { sft: sft, dpo: dpo } } }
  last: { kind: dpo, inputs: { model.base_model: other, data.train: demo } }
"""
Act = Callable[[Any, Run], None]


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Act]:
    """A pipeline of stages that only leave their files; what a stage of some name does besides can be set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(STAGES_YAML)
    does: dict[str, Act] = {}

    def train(config: Any, run: Run) -> dict[str, float]:
        run.open_folders()
        if run.name in does:
            does[run.name](config, run)
        if run.name == "demo":
            for sort in ("base", "sft", "preferences", "prompts", "heldout_prompts"):
                (run.directory / f"{sort}.jsonl").write_text(f"{config.seed}\n")
        else:
            (run.directory / "model").mkdir(exist_ok=True)
            (run.directory / "model" / "config.json").write_text(json.dumps([run.name, config.seed]))
        (run.directory / "results.json").write_text("{}")
        return {"loss": 1.0}

    module = ModuleType("stages_of_failures")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind, row in STAGE_KINDS.items():
        stub = replace(row, function_path=f"{module.__name__}:train", version=1)
        monkeypatch.setitem(STAGE_KINDS, kind, stub)
    return does


def out(name: str) -> Path:
    return Path("checkpoints/rlhf") / name


def done() -> set[str]:
    return {path.parent.name for path in Path("checkpoints/rlhf").glob("*/done.json")}


def raises(error: BaseException) -> Act:
    def act(config: Any, run: Run) -> None:
        (run.directory / "state.pt").write_text("good")
        raise error

    return act


def test_other_stages_continue_and_the_summary_names_the_failure(
    acts: dict[str, Act], capsys: pytest.CaptureFixture[str]
) -> None:
    acts["sft"] = raises(ZeroDivisionError("by zero\nand more"))
    assert main(["run", "p.yaml"]) == 1
    said = capsys.readouterr()
    assert done() == {"demo", "base", "other", "last"}
    assert said.err == (
        "accord: sft failed: ZeroDivisionError: by zero (the traceback is in logs/rlhf/sft/sft.log); not run because of"
        " that: dpo, far, compare. Fix this and run the same command again; finished stages are kept.\n"
    )
    assert "- dpo: not run, because sft failed" in said.out
    assert "- far: not run, because sft failed" in said.out
    assert "Traceback" not in said.out + said.err
    assert "ZeroDivisionError: by zero" in Path("logs/rlhf/sft/sft.log").read_text()
    failed = json.loads((out("sft") / "failed.json").read_text())
    assert failed["error"].startswith("ZeroDivisionError: by zero (the traceback")
    assert (out("sft") / "state.pt").read_text() == "good"
    assert not (out("sft") / LOCK).exists()
    assert not Path("checkpoints/rlhf/results.json").exists()
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"✗ failed +sft ", shown)

    del acts["sft"]
    assert main(["run", "p.yaml"]) == 0
    assert done() == {"demo", "base", "sft", "dpo", "far", "other", "compare", "last"}
    assert capsys.readouterr().out.count("unchanged, kept") == 4
    assert not (out("sft") / "failed.json").exists()


def test_two_failures_are_both_reported(acts: dict[str, Act], capsys: pytest.CaptureFixture[str]) -> None:
    acts["sft"], acts["other"] = raises(UserError("first thing.")), raises(UserError("second thing."))
    assert main(["run", "p.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("accord: sft failed: first thing; other failed: second thing; not run because of that: ")


def test_a_stop_is_no_failure(acts: dict[str, Act], capsys: pytest.CaptureFixture[str]) -> None:
    acts["sft"] = raises(Interrupted("sft: stopped at step 1 of 2; the state is saved."))
    assert main(["run", "p.yaml"]) == 130
    assert "Run the same command again" in capsys.readouterr().err
    assert done() == {"demo", "base"}
    assert not (out("sft") / "failed.json").exists()
    assert main(["why", "sft"]) == 0
    assert capsys.readouterr().out.startswith("sft was interrupted (no step yet) and would resume")
    events = [json.loads(x) for x in Path("checkpoints/rlhf/journal.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["event"]) for e in events][-2:] == [("sft", "started"), ("sft", "stopped")]


def test_a_stage_that_another_process_runs_is_refused(acts: dict[str, Act], capsys: pytest.CaptureFixture[str]) -> None:
    """A locked stage is left alone, nothing is written to its folder, and stages that do not need it run."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        from accord.pipeline.lock import process_start

        lock = {"pid": child.pid, "host": os.uname().nodename, "start": process_start(child.pid), "since": "now"}
        out("sft").mkdir(parents=True)
        (out("sft") / LOCK).write_text(json.dumps(lock))
        assert main(["run", "p.yaml"]) == 1
        assert f"process {child.pid} is writing it" in capsys.readouterr().err
        assert sorted(p.name for p in out("sft").iterdir()) == [LOCK]
        assert done() == {"demo", "base", "other", "last"}
        assert main(["status"]) == 0
        assert re.search(rf"▶ running +sft +pid {child.pid}", capsys.readouterr().out)
        child.communicate(b"\n")
    assert main(["run", "p.yaml"]) == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(28, "No space left on device", "x/metrics.jsonl"),
            "x/metrics.jsonl: could not be written, since the disk",
        ),
        (OSError(122, "Disk quota exceeded", "x"), "x: could not be written, since the disk is full"),
        (
            RuntimeError('I/O error: Os { code: 28, kind: StorageFull, message: "…" }'),
            "the stage's folder: could not be",
        ),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the stage's folder: could not be",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "rows.jsonl"),
            "rows.jsonl: No such file or directory; fix this",
        ),
        (MemoryError(), "out of memory; lower training.micro_batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory; lower"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "out of memory; lower",
        ),
        (OSError(12, "Cannot allocate memory"), "out of memory; lower"),
        (OSError(5, "Input/output error"), "a file or a connection: Input/output error; fix this"),
        (UserError("as it is."), "as it is."),
    ],
)
def test_known_failures_are_one_sentence(error: Exception, words: str) -> None:
    assert sentence(error).startswith(words)
    assert "\n" not in sentence(error)


def test_memory_that_runs_out_is_blamed_on_the_batch_only_in_the_steps(open_run: Callable[..., Run]) -> None:
    """Models, files and templates are opened before the first step; the result is measured and saved after the last."""
    with open_run() as run:
        assert sentence(MemoryError(), moment_of(run)).startswith(
            "out of memory before the first step, while models and"
        )
        run.begin(2)
        assert "lower training.micro_batch_size" in sentence(MemoryError(), moment_of(run))
        run.tick({"loss": 1.0})
        run.tick({"loss": 1.0})
        said = sentence(RuntimeError("CUDA out of memory."), moment_of(run))
    assert said.startswith("out of memory after the last step, while the result was measured or saved")
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = MemoryError()
    assert sentence(wrapped, "end") == said


def test_unknown_failures_name_the_log() -> None:
    assert sentence(KeyError("x")) == ""
    assert in_words(KeyError("x"), Path("a.log")) == "KeyError: 'x' (the traceback is in a.log)"


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from accord.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit on the size of files")
def test_a_full_disk_is_one_sentence_and_loses_no_saved_state(
    tiny: Path, environment: dict[str, str], digests: Callable[[Path], dict[str, str]]
) -> None:
    """A real write fails, by a limit on the size of files; once there is room, the result is that of an unlimited run."""
    words = ["run", str(tiny), "--only", "demo,base,sft"]
    for place in ("cut", "whole"):
        (tiny.parent / place).mkdir()
    cut, whole = tiny.parent / "cut", tiny.parent / "whole"
    more = {"env": environment, "capture_output": True, "text": True, "timeout": 300}
    ended = subprocess.run([sys.executable, "-c", LIMITED.format(size=60_000), *words], cwd=cut, **more)  # type: ignore[call-overload]
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith("accord: base failed: "), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "could not be written" in ended.stderr
    assert not list((cut / "checkpoints/rlhf/base").glob(".*"))
    for place in (cut, whole):
        assert subprocess.run([sys.executable, "-m", "accord.cli", *words], cwd=place, **more).returncode == 0  # type: ignore[call-overload]
    assert digests(cut / "checkpoints/rlhf") == digests(whole / "checkpoints/rlhf")


def test_a_truncated_state_is_reported_and_left(tiny: Path, accord: Any, tmp_path: Path) -> None:
    words = ["run", str(tiny), "--only", "demo,base"]
    command = [sys.executable, "-c", "from accord.cli import main; import sys; sys.exit(main(sys.argv[1:]))", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [*command, "base.data.limit=0", "base.training.num_epochs=40"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    state = tmp_path / "checkpoints/rlhf/base/state.pt"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    ended = accord(*words, "base.data.limit=0", "base.training.num_epochs=40")
    assert ended.returncode == 1
    assert "state.pt: not a readable checkpoint" in ended.stderr
    assert "delete it to start again" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert len(state.read_bytes()) == len(whole) // 2
    state.unlink()
    assert accord(*words, "base.data.limit=0", "base.training.num_epochs=1").returncode == 0
