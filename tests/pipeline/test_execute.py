"""The small pipeline as one command, several stages at once, under make, and from Python: the same digests each time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Digests = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


def run(tiny: Path, place: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "accord.cli", *(words or ("run", str(tiny)))]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def whole(tiny: Path, world: Path, environment: dict[str, str], digests: Digests) -> dict[str, str]:
    """What one stage after another leaves; run once for all tests."""
    place = world / "whole"
    if not place.exists():
        assert run(tiny, place, environment).returncode == 0
    return digests(place / "checkpoints/rlhf")


def events(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "checkpoints/rlhf/journal.jsonl").read_text().splitlines()]


def test_several_jobs_at_once_give_the_same_digests(
    tiny: Path, environment: dict[str, str], digests: Digests, whole: dict[str, str], order: list[str]
) -> None:
    place = tiny.parent / "jobs"
    ended = run(tiny, place, environment, "run", str(tiny), "--jobs", "2")
    assert ended.returncode == 0, ended.stderr
    assert digests(place / "checkpoints/rlhf") == whole
    results = json.loads((place / "checkpoints/rlhf/results.json").read_text())
    assert list(results["stages"]) == order
    both = [e for e in events(place) if e["stage"].startswith("ppo")]
    assert sorted(e["event"] for e in both) == ["finished", "finished", "started", "started"]
    assert len({e["pid"] for e in both}) == 2  # the next test shows that both run at once
    again = run(tiny, place, environment, "run", str(tiny), "--jobs", "2")
    assert again.stdout.count("unchanged, kept") == len(order)


def test_a_finished_pipeline_takes_less_than_a_second_and_no_torch(
    tiny: Path, world: Path, environment: dict[str, str], whole: dict[str, str], order: list[str]
) -> None:
    code = (
        "import sys, time\nfrom accord.cli import main\ncode = main(sys.argv[1:])\n"
        "print('\\n', code, time.process_time(), 'torch' in sys.modules, 'sqlalchemy' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, "run", str(tiny)]
    said = subprocess.run(command, cwd=world / "whole", env=environment, capture_output=True, text=True, timeout=60)
    assert said.stdout.count("unchanged, kept") == len(order), said.stdout
    returned, seconds, torch, sqlalchemy = said.stdout.split("\n")[-2].split()
    assert (returned, torch, sqlalchemy) == ("0", "False", "False")
    assert float(seconds) < 1.0


def wait_for(child: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not what():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["worker killed", "stopped"])
def test_workers_that_end_early_keep_their_state(
    tiny: Path, environment: dict[str, str], digests: Digests, whole: dict[str, str], how: str
) -> None:
    """One worker killed: its stage failed, the other went on.  Ctrl-C: both save and end.  Run again: the same end."""
    place = tiny.parent / "early"
    place.mkdir()
    long = ["ppo.training.iterations=20000"]
    assert run(tiny, place, environment, "run", str(tiny), "--only", "demo,base,sft,reward").returncode == 0
    command = [sys.executable, "-m", "accord.cli", "run", str(tiny), "--jobs", "2", "--only", "ppo", *long]
    child = subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out = place / "checkpoints/rlhf"
    paths = [out / f"ppo_beta-{beta}" for beta in ("0.05", "0.1")]
    wait_for(child, lambda: all((p / "state.pt").exists() for p in paths))
    if how == "worker killed":
        os.kill(json.loads((paths[0] / "lock.json").read_text())["pid"], signal.SIGKILL)
        wait_for(child, lambda: (paths[0] / "failed.json").exists())
        assert "killed (signal 9)" in json.loads((paths[0] / "failed.json").read_text())["error"]
        wait_for(child, lambda: child.poll() is None)
    child.send_signal(signal.SIGINT)
    said, err = child.communicate(timeout=100)
    assert child.returncode == 130, said + err
    assert "stopped; the state is saved. Run the same command again to resume." in err
    if how == "worker killed":
        assert "✗ ppo_beta-0.05: failed: its process was killed" in said
    for path in paths:
        assert (path / "state.pt").exists()
    shown = run(tiny, place, environment, "status", str(tiny), *long).stdout
    assert "ppo_beta-0.1   step " in shown
    assert re.search(f"{'✗ failed' if how == 'worker killed' else '‖ interrupted'} +ppo_beta-0.05 ", shown)
    assert run(tiny, place, environment).returncode == 0
    assert digests(out) == whole


def test_make_runs_the_same_graph(
    tiny: Path, environment: dict[str, str], digests: Digests, whole: dict[str, str], order: list[str]
) -> None:
    place = tiny.parent / "make"
    written = run(tiny, place, environment, "run", str(tiny), "--emit", "makefile")
    (place / "Makefile").write_text(written.stdout)
    make = ["make", "-j", "2", f"ACCORD={sys.executable} -m accord.cli"]
    ended = subprocess.run(make, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert digests(place / "checkpoints/rlhf") == whole
    assert (place / "checkpoints/rlhf/results.json").exists()
    finished = [e["stage"] for e in events(place) if e["event"] == "finished"]
    assert sorted(finished) == sorted(order)


def test_dvc_has_the_same_graph(tiny: Path, environment: dict[str, str], order: list[str]) -> None:
    """Every dependency is the pipeline's file or what another stage leaves; DVC's own rules on names hold."""
    text = run(tiny, tiny.parent / "dvc", environment, "run", str(tiny), "--emit", "dvc", "seed=3").stdout
    stages = yaml.safe_load(text)["stages"]
    assert list(stages) == [name.replace(".", "_") for name in order]
    outs = {next(iter(out)): name for name, stage in stages.items() for out in stage["outs"]}
    needs = {name: [outs[d] for d in stage["deps"] if d in outs] for name, stage in stages.items()}
    assert needs["ppo_beta-0_1"] == ["sft", "reward", "demo"]
    assert needs["demo"] == []
    assert stages["sft"]["cmd"] == f"accord run {tiny} seed=3 --only sft"
    assert all(set(stage["deps"]) - set(outs) == {str(tiny)} for stage in stages.values())
