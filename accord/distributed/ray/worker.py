"""The actor that samples and scores replies: its own copy of the policy, and a task that it opens from the same files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.data.chat_template import dated
from accord.distributed.ray.place import Place
from accord.distributed.ray.weights import Received, Weights
from accord.models.backbone import Backbone
from accord.models.quantized import sampling_model
from accord.rollout.chunks import Chunk, on_device, sample_chunk, score_chunk, token_versions
from accord.rollout.collect import TextTask
from accord.rollout.generate import Sampler
from accord.runtime.device import autocast
from accord.types import Generation, Rollout

OpenTask = Callable[[Any, torch.device], tuple[Backbone, TextTask]]
"""(config, device) to a model with the policy's parameters, and the task: a function of a module, by its name."""


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker needs to begin, apart from weights."""

    settings: Any
    """The class of the config."""
    config: dict[str, Any]
    open_task: OpenTask
    job_rows: int
    place: Place


@dataclass(frozen=True, slots=True)
class Sampled:
    """A finished chunk."""

    number: int
    worker: int
    version: int  # of the weights that sampled the first tokens
    swaps: tuple[tuple[int, int], ...]  # (position, version): weights that were taken over between tokens
    content: Rollout | Generation
    """Without scores where the learner scores."""
    seconds: float


class WatchedSteps:
    """A sampler that calls ``before(t)`` before it computes the state from which token t ≥ 1 is drawn."""

    def __init__(self, backbone: Backbone, before: Callable[[int], None]) -> None:
        self.vocab_size, self.parameters = backbone.vocab_size, backbone.parameters
        self.prefill, self.policy_logits = backbone.prefill, backbone.policy_logits
        self._backbone, self._before, self._position = backbone, before, 0

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """``Backbone.step``, after ``before``."""
        self._position += 1
        self._before(self._position)
        return self._backbone.step(tokens, cache)


class TextWorker:
    """Samples chunks, scores them where workers do that, and holds one version of the weights."""

    def __init__(self, number: int, setup: WorkerSetup) -> None:
        setup.place.enter()
        self._number, self._setup = number, setup
        self._config = setup.settings.model_validate(setup.config)
        torch.set_num_threads(self._config.rollout.threads)
        self._device = torch.device("cuda" if self._config.rollout.gpus else "cpu")
        with dated(self._config.template_date):
            self._model, self._task = setup.open_task(self._config, self._device)
        self._model.requires_grad_(False)
        self._received = Received(self._model)
        self._newest: Weights | None = None

    def update(self, weights: Weights) -> None:
        """Offers newer weights, which replies in progress change to before their next token."""
        if self._newest is None or weights.version > self._newest.version:
            self._newest = weights

    def collect(self, chunk: Chunk, weights: Weights) -> Sampled:
        """The chunk's replies; the weights are this version, or with updates in flight this or newer ones."""
        started = time.perf_counter()
        torch.set_num_threads(
            self._config.rollout.threads
        )  # calls may come in several threads, each with its own number
        if self._newest is not None and self._newest.version > weights.version:
            weights = self._newest
        self._received.take(weights)
        version, swaps = self._received.version, list[tuple[int, int]]()

        def swap(position: int) -> None:
            newest = self._newest
            if newest is not None and newest.version > self._received.version:
                self._received.take(newest)
                swaps.append((position, newest.version))

        sampler: Sampler = sampling_model(self._model, self._config.sampling.weights)
        if self._config.rollout.in_flight_updates:
            sampler = WatchedSteps(self._model, swap)
        with dated(self._config.template_date), autocast(self._device, self._config.precision):
            generation = sample_chunk(self._task, sampler, chunk, self._setup.job_rows)
            rollout = None
            if self._config.rollout.score == "workers":
                rollout = score_chunk(self._task, chunk, generation, token_versions(generation, version, swaps))
        cpu = torch.device("cpu")
        content: Rollout | Generation = on_device(rollout, cpu) if rollout else generation.to(cpu)
        seconds = time.perf_counter() - started
        return Sampled(chunk.number, self._number, version, tuple(swaps), content, seconds)
