"""A replay follows its ledger, and says so where it cannot, or where its numbers are others; it needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.algorithms import ppo
from accord.config.on_policy import LanguagePPOConfig
from accord.distributed.ray.replay import threads
from accord.distributed.ray.weights import digest, flat_weights
from accord.errors import Failed, Interrupted, UserError
from accord.io.digests import content_digest
from accord.models.open import open_backbone
from accord.rollout.chunks import Chunks
from accord.rollout.text_source import TextSource
from accord.runtime.run import Run

Plan = Sequence[tuple[int, int, list[list[int]]]]
"""The chunks of a rollout: number, version, swaps."""
STALE: tuple[Plan, ...] = (
    [(0, 0, []), (2, 0, [])],
    [(1, 0, [[3, 1]]), (3, 1, [])],
    [(5, 0, [[1, 1], [4, 2]]), (4, 2, [])],
)


@pytest.fixture
def config(world: Any, rewards: str) -> LanguagePPOConfig:
    """Two chunks of two prompts a rollout."""
    return LanguagePPOConfig.model_validate(
        {
            "model": {"base_model": world.transformer, "max_length": 64},
            "training": {
                "iterations": 3, "replies": 8, "samples_per_prompt": 2, "batch_size": 4, "num_epochs": 1,
                "learning_rate": 1e-2,
            },
            "reward": {"source": f"{rewards}:brevity"},
            "sampling": {"max_new_tokens": 8},
            "prompts": world.prompts,
            "device": "cpu",
            "rollout": {"engine": "ray", "workers": 2, "max_staleness": 2, "in_flight_updates": True},
        }
    )  # fmt: skip


@pytest.fixture
def write(config: LanguagePPOConfig, tmp_path: Path, open_run: Any) -> Callable[..., Path]:
    """Writes a ledger of these rollouts, by default of a run on a GPU, whose digests are not compared."""
    _, task = ppo.open_worker_task(config, torch.device("cpu"))
    source = TextSource(open_run("drawing"), task, lambda: open_backbone(""), 4, torch.device("cpu"))
    chunks = Chunks(source, 2)

    def make(rollouts: Sequence[Plan], weights: str = "", device: str = "cuda") -> Path:
        first = {
            "format": 1,
            "seed": 0,
            "threads": 1,
            "ranks": 1,
            "worker_threads": 1,
            "device": device,
            "settings": {},
            "inputs": {},
        }
        rows: list[dict[str, Any]] = [first]
        for iteration, plan in enumerate(rollouts):
            lines = [
                {"chunk": number, "prompts": list(chunks[number].rows), "version": version, "swaps": swaps, "worker": 0}
                for number, version, swaps in plan
            ]
            rows.append({"rollout": iteration, "weights": weights, "chunks": lines, "dropped": []})
        path = tmp_path / "ledger.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return make


Replay = Callable[..., Path]


@pytest.fixture
def replay(config: LanguagePPOConfig, open_run: Any) -> Replay:
    """Runs the stage from a ledger, and returns its folder."""

    def run(ledger: Path, name: str = "again", resume: bool = False) -> Path:
        rollout = config.rollout.model_copy(update={"replay": str(ledger)})
        with open_run(name, save_every=1, resume=resume) as opened:
            ppo.train(config.model_copy(update={"rollout": rollout}), opened)
        folder: Path = opened.directory
        return folder

    return run


def weights(folder: Path) -> str:
    return content_digest(folder / "model" / "model.safetensors")


def test_a_replay_depends_on_which_weights_sampled_which_tokens(write: Any, replay: Replay) -> None:
    """Were versions or swaps ignored, these ledgers would end in the same weights."""
    newest: tuple[Plan, ...] = tuple([(n, v, []) for n, _, _ in plan] for v, plan in enumerate(STALE))
    unswapped: tuple[Plan, ...] = tuple([(n, v, []) for n, v, _ in plan] for plan in STALE)
    later = (*STALE[:2], [(5, 0, [[1, 1], [5, 2]]), (4, 2, [])])
    found = [weights(replay(write(plan), f"run{i}")) for i, plan in enumerate((STALE, newest, unswapped, later))]
    assert len(set(found)) == 4


def test_the_order_of_arrival_within_a_rollout_changes_nothing(write: Any, replay: Replay) -> None:
    other = tuple(list(reversed(plan)) for plan in STALE)
    assert weights(replay(write(STALE), "one")) == weights(replay(write(other), "two"))


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_replay_that_was_stopped_resumes_with_the_older_weights_it_needs(
    write: Any, replay: Replay, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    ledger, tick = write(STALE), Run.tick
    expected = weights(replay(ledger, "whole"))

    def stopping(self: Run, metrics: dict[str, float]) -> None:
        tick(self, metrics)
        self.stop.raised = self.step == stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "tick", stopping)
        with pytest.raises(Interrupted):
            replay(ledger, "parts")
    assert weights(replay(ledger, "parts", resume=True)) == expected


def test_other_weights_than_the_run_had_end_a_replay_on_a_cpu_where_they_are_noticed(
    write: Any, replay: Replay, config: LanguagePPOConfig
) -> None:
    with pytest.raises(Failed, match="the weights when rollout 0 began are not those of the run"):
        replay(write(STALE, "0" * 16, "cpu"))
    initial = digest(flat_weights(open_backbone(config.model.base_model), "float32"))
    with pytest.raises(Failed, match="the weights when rollout 1 began are not those of the run"):
        replay(write(STALE, initial, "cpu"))


@pytest.mark.parametrize(
    ("rollouts", "words"),
    [
        ([[(0, 0, []), (1, 1, [])]], "line 2: chunk 1 names weights that did not exist"),
        ([[(0, 0, []), (1, 0, [[3, 1]])]], "line 2: chunk 1 names weights that did not exist"),
        ([[(0, 0, []), (1, 0, [[3]])]], "line 2: chunk 1 names weights that did not exist"),
        ([[(0, 0, [])]], "line 2: 1 chunks, and a rollout of this run has 2"),
        ([[(0, 0, []), (1, 0, [])]], "ends after rollout 0, before the run did"),
    ],
)
def test_a_ledger_that_cannot_be_followed_is_refused(write: Any, replay: Replay, rollouts: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replay(write(rollouts))


def test_a_ledger_of_other_prompts_is_refused_before_anything_is_written(
    write: Any, replay: Replay, tmp_path: Path
) -> None:
    path = write(STALE)
    text = path.read_text(encoding="utf-8").replace('"prompts": [', '"prompts": [9, ', 1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="line 2: chunk 0 has other prompts"):
        replay(path)
    assert not (tmp_path / "out").exists()


def test_a_replay_leaves_the_number_of_threads_as_it_was(write: Any, replay: Replay) -> None:
    """Whatever runs after it in the same process rounds as it would have."""
    with threads(2):
        replay(write(STALE))
        assert torch.get_num_threads() == 2
