"""Whatever the order in which chunks arrive: each is trained on once, and none is older than allowed."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from accord.config.rollout import TextRolloutEngine
from accord.distributed.ray.ledger import Header, Ledger
from accord.distributed.ray.pump import State
from accord.distributed.ray.source import RemoteRollouts
from accord.distributed.ray.weights import Publisher, Weights
from accord.distributed.ray.worker import Sampled
from accord.distributed.sources import SharedRollouts
from accord.rollout.chunks import Chunk
from accord.types import Generation, Rollout
from benchmarks.scaling_model import machine_tables

NUMBERS: Any = {"format": 1, "seed": 0, "threads": 1, "ranks": 1, "worker_threads": 1}
HEADER = Header(**NUMBERS, device="cpu", settings={}, inputs={})
EMPTY = torch.zeros(1, 1)
GENERATION = Generation(((1,),), EMPTY.long(), EMPTY.bool(), EMPTY, torch.zeros(1, dtype=torch.bool))
REPLIES = Rollout(GENERATION, torch.zeros(1).long(), EMPTY.long(), EMPTY, torch.zeros(1), {})


class Simulated:
    """A pump whose workers need random times, and a learner's clock that stands still while it waits."""

    def __init__(self, workers: int, seed: int) -> None:
        self.workers, self.chance = workers, random.Random(seed)
        self.allowed: deque[int] = deque()
        self.running: dict[int, tuple[int, float]] = {}  # chunk: (version, time left)
        self.arrived: list[Sampled] = []
        self.version = -1

    def publish(self, weights: Weights) -> None:
        self.version = weights.version
        self.pass_time(self.chance.choice([0.0, 0.3, 3.0]))  # the learner trains

    def allow(self, numbers: Collection[int]) -> None:
        self.allowed.extend(numbers)

    def pass_time(self, seconds: float) -> None:
        while self.allowed and len(self.running) < self.workers:
            slow = self.chance.random() < 0.2
            self.running[self.allowed.popleft()] = (self.version, self.chance.random() * (20 if slow else 1))
        for number, (version, left) in list(self.running.items()):
            self.running[number] = (version, left - seconds)
            if left <= seconds:
                del self.running[number]
                self.arrived.append(Sampled(number, 0, version, (), REPLIES, 0.0))

    def wait_for(self, enough: Callable[[State], bool]) -> State:
        for _ in range(10_000):
            state = State({number: version for number, (version, _) in self.running.items()}, list(self.arrived))
            if enough(state):
                return state
            self.pass_time(0.1)
        raise AssertionError("the learner waits forever")

    def take(self, numbers: Collection[int]) -> list[Sampled]:
        taken = [part for part in self.arrived if part.number in numbers]
        self.arrived = [part for part in self.arrived if part.number not in numbers]
        return taken


COUNT = 3  # chunks of a rollout


class NumberedChunks:
    """Chunks that name themselves."""

    per_rollout = COUNT
    source = SimpleNamespace(
        device=torch.device("cpu"), precision="float32", task=SimpleNamespace(decoding=SimpleNamespace(pad_id=0))
    )

    def __getitem__(self, number: int) -> Chunk:
        return Chunk(number, (number,), (number,))


@pytest.fixture(autouse=True)
def _without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "publish", lambda self, version, flat: (Weights(version, ()), 0))


def opened(folder: Path, pump: Simulated, **settings: Any) -> RemoteRollouts:
    engine = TextRolloutEngine(engine="ray", **settings)
    chunks: Any = NumberedChunks()
    remote: Any = pump
    return RemoteRollouts(chunks, remote, Ledger(folder / "ledger.jsonl", HEADER), engine)


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()][1:]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("overflow", ["wait", "drop"])
@pytest.mark.parametrize(("workers", "staleness"), [(1, 0), (4, 0), (4, 1), (7, 2), (2, 5)])
def test_chunks_are_trained_on_once_and_in_time(
    tmp_path: Path, workers: int, staleness: int, overflow: str, seed: int
) -> None:
    pump, policy = Simulated(workers, seed), nn.Linear(1, 1)
    remote = opened(tmp_path, pump, max_staleness=staleness, overflow=overflow)
    for iteration in range(30):
        remote.collect(iteration, policy)
        under_way = len(pump.allowed) + len(pump.running) + len(pump.arrived)
        assert under_way <= staleness * COUNT, "no more is sampled ahead than may be used"
    lines = recorded(tmp_path)
    trained = [chunk["chunk"] for line in lines for chunk in line["chunks"]]
    dropped = [number for line in lines for number in line["dropped"]]
    assert len({*trained, *dropped}) == len(trained) + len(dropped)
    assert all(len(line["chunks"]) == COUNT for line in lines)
    ages = [line["rollout"] - chunk["version"] for line in lines for chunk in line["chunks"]]
    assert 0 <= min(ages) <= max(ages) <= staleness
    if staleness == 0:
        assert [sorted(chunk["chunk"] for chunk in line["chunks"]) for line in lines] == [
            list(range(COUNT * k, COUNT * (k + 1))) for k in range(30)
        ]
    if overflow == "wait":
        assert not dropped
        assert set(range(max(trained) + 1 - COUNT * (staleness + 1))) <= set(trained), "none is left behind"


class Timed(Simulated):
    """A pump whose workers take ``seconds`` for a chunk, and a learner that takes none."""

    def __init__(self, workers: int, seconds: dict[int, float]) -> None:
        super().__init__(workers, 0)
        self.seconds = seconds

    def publish(self, weights: Weights) -> None:
        self.version = weights.version

    def pass_time(self, seconds: float) -> None:
        new = [*self.allowed][: self.workers - len(self.running)]
        super().pass_time(0.0)
        self.running |= {number: (self.version, self.seconds.get(number, 1.0)) for number in new}
        super().pass_time(seconds)


def test_nothing_is_dropped_where_there_are_more_workers_than_chunks_in_a_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slow chunks of the first weights are not both left for the last rollout that may train on one of them."""
    monkeypatch.setattr(NumberedChunks, "per_rollout", 1)
    remote = opened(tmp_path, Timed(3, {0: 0.1, 1: 9.0, 2: 9.0, 3: 0.1}), max_staleness=2)
    for iteration in range(6):
        remote.collect(iteration, nn.Linear(1, 1))
    lines = recorded(tmp_path)
    assert not any(line["dropped"] for line in lines)
    assert {1, 2} <= {line["chunks"][0]["chunk"] for line in lines[:3]}


def test_late_chunks_are_dropped_where_the_settings_say_so(tmp_path: Path) -> None:
    dropped = 0
    for seed in range(6):
        remote = opened(tmp_path, Simulated(4, seed), max_staleness=1, overflow="drop")
        for iteration in range(30):
            remote.collect(iteration, nn.Linear(1, 1))
        found = sum(len(line["dropped"]) for line in recorded(tmp_path))
        assert remote.state_dict()["dropped"] == found
        dropped += found
    assert dropped > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staleness", [0, 2])
def test_after_a_resume_nothing_is_lost_and_nothing_trained_on_twice(tmp_path: Path, staleness: int, seed: int) -> None:
    remote = opened(tmp_path, Simulated(4, seed), max_staleness=staleness)
    for iteration in range(5):
        remote.collect(iteration, nn.Linear(1, 1))
    state = remote.state_dict()
    remote.collect(5, nn.Linear(1, 1))  # after the state was saved: lost with the process
    again = opened(tmp_path, Simulated(4, seed + 100), max_staleness=staleness)
    again.load_state_dict(state)
    for iteration in range(5, 20):
        again.collect(iteration, nn.Linear(1, 1))
    lines = recorded(tmp_path)
    assert [line["rollout"] for line in lines] == list(range(20))
    trained = [chunk["chunk"] for line in lines for chunk in line["chunks"]]
    assert len(set(trained)) == len(trained)
    assert sorted([*trained, *again.state_dict()["open"]]) == list(range((20 + staleness) * COUNT))
    assert set(range(10 * COUNT)) <= set(trained), "what was under way when the state was saved is sampled again"
    assert min(chunk["version"] for chunk in lines[5]["chunks"]) == 5, "what was under way is sampled by newer weights"


def test_the_cost_model_finds_what_it_reads_among_the_metrics_of_a_rollout(tmp_path: Path) -> None:
    row: dict[str, float] = {}

    def record(metrics: dict[str, float], prefix: str) -> None:
        row.update({f"{prefix}{name}": 1.0 for name in metrics})

    alone: Any = SimpleNamespace(run=SimpleNamespace(record=record), device=torch.device("cpu"))
    policy: Any = nn.Linear(1, 1)
    SharedRollouts(opened(tmp_path, Simulated(3, 0)), alone, policy).collect(0)
    run = {"workers": 1, "max_staleness": 0, "rows": [row]}
    lines, _ = machine_tables({"runs": [run], "chunks": COUNT, "cores": 2, "made": "today"})
    assert lines[-1].startswith("| 1 | 0 | 3.00 |")
