"""PPO goes on when workers die, hang or lose their node, and resumes when it is killed itself: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from accord.io.digests import content_digest

REWARD = """
import os, signal, time
from pathlib import Path

def share_of_a(prompts, replies):
    flags = Path(os.environ.get("FAULTS") or {folder!r})
    if not flags.is_dir():
        return [reply.count("a") / max(len(reply), 1) for reply in replies]
    if (flags / "third").exists():  # all wait until the third node has work, and that one works without end
        if "THIRD_NODE" in os.environ:
            (flags / "busy").touch()
            time.sleep(600)
        while not (flags / "busy").exists():
            time.sleep(0.05)
    for name in ("die", "hang"):
        try:
            (flags / name).rename(flags / ("done-" + name))  # the first of all workers
        except OSError:
            continue
        os.kill(os.getpid(), signal.SIGKILL) if name == "die" else time.sleep(600)
    return [reply.count("a") / max(len(reply), 1) for reply in replies]
"""
Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """The folder in which a file ``die`` or ``hang`` has one worker do that, once."""
    return tmp_path / "faults"


@pytest.fixture
def settings(world: Any, tmp_path: Path, faults: Path) -> Iterator[Settings]:
    """PPO's settings; its reward is a function in a module of this test."""
    module = f"faulty_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{module}.py").write_text(REWARD.format(folder=str(faults)))
    sys.path.insert(0, str(folder))

    def make(iterations: int = 3, **rollout: Any) -> dict[str, Any]:
        return {
            "model": {"policy": "language", "base_model": world.transformer, "max_length": 64},
            "training": {
                "iterations": iterations, "replies": 16, "samples_per_prompt": 2, "batch_size": 8, "num_epochs": 1,
                "learning_rate": 1e-2, "micro_batch_size": 4,
            },
            "reward": {"source": f"{module}:share_of_a"},
            "sampling": {"max_new_tokens": 8},
            "prompts": world.prompts,
            "threads": 1,
            "save_every": 1,
            "log_every": 1,
            "device": "cpu",
            "seed": 7,
            "rollout": rollout,
        }  # fmt: skip

    yield make
    sys.path.remove(str(folder))


RAY = {"engine": "ray", "workers": 2, "chunk_prompts": 2}


def weights(folder: Path) -> str:
    return content_digest(folder / "model" / "model.safetensors")


def chunks(folder: Path) -> list[int]:
    """The chunks that were trained on, as the ledger has them."""
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [chunk["chunk"] for row in rows for chunk in row.get("chunks", ())]


def test_a_worker_that_dies_and_one_that_hangs_change_nothing(
    stage: Any, settings: Settings, faults: Path, tmp_path: Path
) -> None:
    alone = stage("ppo", settings(chunk_prompts=2), "alone")
    faults.mkdir()
    for name in ("die", "hang"):
        (faults / name).touch()
    there = stage("ppo", settings(**RAY, transfer="delta", timeout_seconds=15), "there")
    assert weights(there.folder) == weights(alone.folder)
    assert sorted(chunks(there.folder)) == list(range(12))
    log = (tmp_path / "logs/there/there.log").read_text()
    assert "has died, sampling chunk " in log
    assert "has not answered for more than 15 s, sampling chunk " in log
    assert sorted(p.name for p in faults.iterdir()) == ["done-die", "done-hang"]


def test_a_removed_node_changes_nothing(
    stage: Any, settings: Settings, faults: Path, tmp_path: Path, cluster: Any, node: Any
) -> None:
    def remove() -> None:
        while not (faults / "busy").exists():
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    alone = stage("ppo", settings(chunk_prompts=1), "alone")
    faults.mkdir()
    (faults / "third").touch()
    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    there = stage("ppo", settings(**{**RAY, "workers": 5, "chunk_prompts": 1}), "there")
    thread.join()
    log = (tmp_path / "logs/there/there.log").read_text()
    assert "was lost with its node, sampling chunk " in log
    assert "that work is done again" in log
    assert weights(there.folder) == weights(alone.folder)
    assert sorted(chunks(there.folder)) == list(range(24))


def test_a_killed_learner_resumes_and_its_replay_ends_in_the_same_weights(
    settings: Settings, tmp_path: Path, cluster: Any
) -> None:
    values = settings(iterations=5, **RAY, max_staleness=1, address=cluster.address)
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump(values))
    words = [sys.executable, "-m", "accord.cli", "ppo", "--config", str(file), "out=out", "logs=logs"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path / "modules")])}
    child = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    out, lines = tmp_path / "out/ppo", tmp_path / "logs/ppo/metrics.jsonl"
    while child.poll() is None and not (lines.exists() and '"step": 4' in lines.read_text()):
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert (out / "state.pt").exists()
    assert not (out / "done.json").exists()
    again = subprocess.run([*words, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(chunks(out)) == len(set(chunks(out))) == 20
    replay = [*words[:-2], "out=again", "logs=again/logs", "--replay", str(out / "ledger.jsonl")]
    done = subprocess.run(replay, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "again/ppo_replay") == weights(out)
