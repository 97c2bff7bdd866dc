"""PPO whose replies workers sample: synchronously the run of one process, asynchronously of bounded age, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.errors import Interrupted, UserError
from accord.io.digests import content_digest
from accord.runtime.run import Run

pytestmark = pytest.mark.usefixtures("cluster")
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(world: Any, rewards: str) -> Settings:
    def make(family: str = "transformer", iterations: int = 3, **rollout: Any) -> dict[str, Any]:
        return {
            "model": {"base_model": getattr(world, family), "max_length": 64},
            "training": {
                "iterations": iterations, "replies": 16, "samples_per_prompt": 2, "batch_size": 8, "num_epochs": 1,
                "learning_rate": 1e-2, "micro_batch_size": 4,
            },
            "kl": {"beta": 0.1, "target": 1.0, "horizon": 16},
            "reward": {"terms": [{"source": world.reward}, {"source": f"{rewards}:share_of_a"}]},
            "sampling": {"max_new_tokens": 8},
            "prompts": world.prompts,
            "threads": 1,
            "save_every": 1,
            "rollout": rollout,
        }  # fmt: skip

    return make


RAY = {"engine": "ray", "workers": 2, "chunk_prompts": 2}


def weights(folder: Path) -> str:
    """The digest of a stage's model."""
    return content_digest(folder / "model" / "model.safetensors")


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Has the user ask to stop at a step."""
    tick = Run.tick

    def stopping(self: Run, metrics: dict[str, float]) -> None:
        tick(self, metrics)
        self.stop.raised = self.stop.raised or self.step == step

    monkeypatch.setattr(Run, "tick", stopping)


@pytest.mark.parametrize(("family", "score"), [("transformer", "workers"), ("mamba", "learner")])
def test_synchronous_workers_train_the_weights_of_one_process_bit_for_bit(
    stage: Any, settings: Settings, family: str, score: str
) -> None:
    alone = stage("ppo", settings(family, chunk_prompts=2), "alone")
    there = stage("ppo", settings(family, **RAY, score=score), "there")
    assert weights(there.folder) == weights(alone.folder)
    assert there.metrics == alone.metrics


def test_asynchronous_replies_are_stale_within_the_bound_and_replayed_bit_for_bit(
    stage: Any, settings: Settings, lines: Any
) -> None:
    values = settings(iterations=5, **RAY, max_staleness=2)
    there = stage("ppo", values, "there")
    rows = [row for row in lines("there") if "rollout/age_max" in row]
    assert max(row["rollout/age_max"] for row in rows) in (1, 2)
    values["rollout"]["replay"] = str(there.folder / "ledger.jsonl")
    again = stage("ppo", values, "again")
    assert weights(again.folder) == weights(there.folder)
    assert again.metrics == there.metrics
    path = there.folder / "ledger.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('{"end": "', '{"end": "0'), encoding="utf-8")
    with pytest.raises(UserError, match="the weights at the end are not those of the run"):
        stage("ppo", values, "once_more")


def test_an_interrupted_run_with_every_option_resumes_and_is_replayed_bit_for_bit(
    stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replies after the stop depend on timing, so only the replay of both parts shows that nothing was lost."""
    options = {"in_flight_updates": True, "weights_dtype": "bfloat16", "transfer": "delta", "score": "learner"}
    values = settings(iterations=8, **RAY, max_staleness=2, **options)
    values["sampling"]["max_new_tokens"] = 48
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted):
            stage("ppo", values, "there")
    there = stage("ppo", values, "there", resume=True)
    recorded = ledger(there.folder)
    assert [line["rollout"] for line in recorded[1:-1]] == list(range(8))
    chunks = [chunk for line in recorded[1:-1] for chunk in line["chunks"]]
    assert len({chunk["chunk"] for chunk in chunks}) == len(chunks) == 8 * 4
    values["rollout"]["replay"] = str(there.folder)
    again = stage("ppo", values, "again")
    assert weights(again.folder) == weights(there.folder)


def test_replies_that_come_too_late_are_dropped_and_counted_and_others_take_their_place(
    stage: Any, settings: Settings, lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_rewards.py").write_text(
        "import pathlib, time\n"
        f"calls = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "calls.mkdir(exist_ok=True)\n"
        "def once(prompts, replies):\n"
        "    first = not any(calls.iterdir())\n"
        "    (calls / str(time.monotonic_ns())).touch()\n"
        "    limit = time.monotonic() + 90\n"
        "    while first and len(list(calls.iterdir())) < 13 and time.monotonic() < limit:\n"
        "        time.sleep(0.05)  # twelve chunks of the other worker: rollout 2 has begun, which this chunk is too old for\n"
        "    return [float(len(reply)) for reply in replies]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    values = settings(iterations=6, **RAY, max_staleness=1, overflow="drop")
    values["reward"] = {"source": "slow_rewards:once"}
    there = stage("ppo", values, "there")
    recorded = ledger(there.folder)
    dropped = [number for line in recorded[1:-1] for number in line["dropped"]]
    assert len(dropped) == [row for row in lines("there") if "ray/dropped" in row][-1]["ray/dropped"] > 0
    trained = [chunk["chunk"] for line in recorded[1:-1] for chunk in line["chunks"]]
    assert len(set(trained)) == len(trained) == 6 * 4
    assert not set(trained) & set(dropped)
