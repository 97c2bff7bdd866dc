"""Weights that a worker takes over between two tokens sample what follows, and nothing before."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.algorithms.ppo import open_worker_task
from accord.config.on_policy import LanguagePPOConfig
from accord.distributed.ray.place import Place
from accord.distributed.ray.weights import Publisher, Weights, flat_weights
from accord.distributed.ray.worker import TextWorker, WorkerSetup
from accord.models.open import open_backbone
from accord.rollout.chunks import Chunk
from accord.types import Rollout


@pytest.fixture
def worker(world: Any, rewards: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> TextWorker:
    monkeypatch.chdir(tmp_path)
    return opened(world, rewards, tmp_path)


def opened(world: Any, rewards: str, folder: Path, **settings: Any) -> TextWorker:
    """Worker 4, in this process; ``settings`` take the places of the test's."""
    config = LanguagePPOConfig.model_validate(
        {
            "model": {"base_model": world.transformer, "max_length": 64},
            "reward": {"source": f"{rewards}:brevity"},
            "sampling": {"max_new_tokens": 10},
            "prompts": world.prompts,
            "rollout": {"engine": "ray", "in_flight_updates": True, "max_staleness": 2},
            **settings,
        }
    )
    setup = WorkerSetup(
        LanguagePPOConfig, config.model_dump(), open_worker_task, 6, Place(str(folder), tuple(sys.path))
    )
    return TextWorker(4, setup)


@pytest.fixture
def versions(cluster: Any, world: Any) -> list[Weights]:
    """The model's weights, and others that write something else."""
    model, publisher = open_backbone(world.transformer), Publisher("full")
    first, _ = publisher.publish(0, flat_weights(model, "float32"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return [first, publisher.publish(1, flat_weights(model, "float32"))[0]]


CHUNK = Chunk(5, (0, 3, 6), tuple(range(11, 17))[:3])


def tokens(rollout: Any) -> torch.Tensor:
    assert isinstance(rollout, Rollout)
    return rollout.generation.responses


def test_new_weights_sample_from_the_next_token_on(
    worker: TextWorker, versions: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = worker.collect(CHUNK, versions[0])
    step, calls = worker._model.step, list[int]()

    def offering(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # while the state is computed from which token 3 is drawn
            worker.update(versions[1])
        return step(*arguments)

    monkeypatch.setattr(worker._model, "step", offering)
    mixed = worker.collect(CHUNK, versions[0])
    monkeypatch.undo()
    new = worker.collect(CHUNK, versions[1])
    assert (old.swaps, mixed.swaps, new.swaps) == ((), ((4, 1),), ())
    assert (old.version, mixed.version, new.version, mixed.number, mixed.worker) == (0, 0, 1, 5, 4)
    assert isinstance(mixed.content, Rollout)
    assert mixed.content.weight_versions[0, :6].tolist() == [0, 0, 0, 0, 1, 1]
    assert torch.equal(tokens(mixed.content)[:, :4], tokens(old.content)[:, :4])
    assert not torch.equal(tokens(mixed.content)[:, 4:8], tokens(old.content)[:, 4:8])


def test_templates_of_a_worker_write_the_date_of_the_config(
    world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.transformer, tmp_path / "dated")
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    (tmp_path / "dated" / "chat_template.jinja").write_text(template, encoding="utf-8")
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n', encoding="utf-8")
    model = {"base_model": str(tmp_path / "dated"), "max_length": 64}
    worker = opened(
        world, rewards, tmp_path, model=model, prompts=str(tmp_path / "chat.jsonl"), template_date="2031-02-03"
    )
    task = worker._task
    assert task.tokenizer.decode(list(task.prompts.prompts[0])) == "03 feb 2031 hi"


def test_a_chunk_begins_with_the_newest_weights_that_were_offered(worker: TextWorker, versions: list[Weights]) -> None:
    worker.update(versions[1])
    assert worker.collect(CHUNK, versions[0]).version == 1
