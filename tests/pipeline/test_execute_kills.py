"""The small pipeline killed by SIGKILL again and again, and started again each time: it ends as an uninterrupted run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processor time as Linux has it")


class Runs:
    """The pipeline, run in processes of its own."""

    def __init__(self, tiny: Path, environment: dict[str, str]) -> None:
        self.tiny, self.folder, self.environment = tiny, tiny.parent, environment

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """In a folder of that name; the paths below it, which some files hold, are the same in each."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "accord.cli", "run", str(self.tiny), "out=out", "logs=logs"]
        return subprocess.Popen(words, cwd=place, env=self.environment, stdout=subprocess.DEVNULL)

    def whole(self, name: str) -> float:
        """Runs to the end; returns the seconds of processor time."""
        child, spent = self.start(name), 0.0
        while child.poll() is None:
            spent = cpu_seconds(child.pid) or spent
            time.sleep(0.02)
        assert child.returncode == 0
        return spent

    def killed(self, name: str, seconds: float) -> bool:
        """Kills a run once it has had so much processor time; False where it came to its end before."""
        child = self.start(name)
        while child.poll() is None:
            if cpu_seconds(child.pid) >= seconds:
                child.kill()
                child.wait()
                return True
            time.sleep(0.001)
        assert child.returncode == 0
        return False


def cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the kernel's name for the processor time of a process
    except OSError:
        return 0.0


def finished(out: Path) -> dict[str, str]:
    """The records of the stages that are done, as text."""
    return {path.parent.name: path.read_text() for path in out.glob("*/done.json")}


def survive(runs: Runs, kills: int, order: list[str], digests: Callable[[Path], dict[str, str]]) -> dict[str, Any]:
    """Kills at random instants of what a run still has to do; returns how it went."""
    rng = random.Random(kills)
    whole, out = runs.folder / "whole" / "out", runs.folder / "cut" / "out"
    length = runs.whole("whole")
    start = runs.whole("whole")  # what a run takes that has nothing to do
    done: dict[str, str] = {}
    died: Counter[str] = Counter()
    hit = rounds = 0
    while hit < kills:
        died_now = runs.killed("cut", start + rng.random() * (length - start))
        now = finished(out)
        for name, record in done.items():  # what was done is neither lost nor done again
            assert now[name] == record, name
        done = now
        if died_now:
            hit += 1
            died[next((n for n in order if n not in done), "the end")] += 1
        else:  # all is done: start from the beginning
            assert digests(out) == digests(whole)
            rounds, done = rounds + 1, {}
            (runs.folder / "cut").rename(runs.folder / f"done{rounds}")
    runs.whole("cut")
    now = finished(out)
    assert {name: now[name] for name in done} == done
    assert digests(out) == digests(whole)
    assert sorted(now) == sorted(order)
    leftovers = list(out.rglob(".*")) + [p for n in ("lock", "progress", "begun") for p in out.rglob(f"{n}.json")]
    assert not leftovers
    assert not list(out.rglob("state.pt"))
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    ends = Counter(line["stage"] for line in lines if line["event"] == "finished")
    assert all(count == 1 for count in ends.values())
    for name in order:
        mine = [line["event"] for line in lines if line["stage"] == name]
        assert "finished" not in mine[:-1], f"{name}: {mine}"  # nothing after the end
        assert mine.count("started") >= 1
    metrics = "logs/{}/metrics.jsonl"
    for name in ("base", "sft", "reward", "ppo_beta-0.05"):
        place = metrics.format(name)
        assert (runs.folder / "cut" / place).read_text() == (runs.folder / "whole" / place).read_text(), name
    return {"kills": hit, "rounds": rounds, "died_in": dict(died)}


@pytest.fixture
def runs(tiny: Path, environment: dict[str, str]) -> Runs:
    return Runs(tiny, environment)


def test_three_kills_change_nothing(runs: Runs, order: list[str], digests: Callable[[Path], dict[str, str]]) -> None:
    survive(runs, 3, order, digests)


@pytest.mark.slow
def test_twenty_kills_change_nothing(runs: Runs, order: list[str], digests: Callable[[Path], dict[str, str]]) -> None:
    went = survive(runs, 20, order, digests)
    print(went)
    assert len(went["died_in"]) >= 3  # kills that all hit one stage would say little
