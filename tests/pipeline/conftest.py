"""The smallest pipeline with every kind of stage: seconds, one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
TINY = """
seed: 0
threads: 1
device: cpu
stages:
  compare: # first in the file, last to run
    inputs: { reference: sft, prompts: demo }
    set: { models: { sft: sft, ppo: "ppo_*" }, max_new_tokens: 8, replies: 2, limit: 4, samples: 1 }
  ppo:
    for: { beta: [0.05, 0.1] }
    inputs: { model.base_model: sft, reward.source: reward, prompts: demo }
    set:
      model.policy: language
      kl.beta: "{beta}"
      sampling.max_new_tokens: 8
      save_every: 1
      log_every: 1
      training: { iterations: 2, replies: 4, batch_size: 4, num_epochs: 2 }
  demo: { set: { base_rows: 60, sft_rows: 24, preference_rows: 16, heldout_base_rows: 8, heldout_sft_rows: 8 } }
  base:
    inputs: { data.train: demo }
    set: &little { model.d_model: 32, model.n_layers: 1, training.batch_size: 4, save_every: 2, log_every: 1,
                   data.limit: 24, model.base_model: transformer }
  sft:
    inputs: { model.base_model: base, data.train: demo }
    set: { data.limit: 16, training.batch_size: 4, save_every: 2, log_every: 1 }
  reward:
    inputs: { model.base_model: sft, data.train: demo }
    set: { model.kind: language, training.batch_size: 4, save_every: 2, log_every: 1 }
"""
ORDER = ["demo", "base", "sft", "reward", "ppo_beta-0.05", "ppo_beta-0.1", "compare"]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Its file, in the test's folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def order() -> list[str]:
    """Its stages, as they run."""
    return list(ORDER)


@pytest.fixture
def environment() -> dict[str, str]:
    """For processes that import this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@pytest.fixture
def accord(tmp_path: Path, environment: dict[str, str]) -> Command:
    """The command line in a process of its own, in the test's folder."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "accord.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """Of all that the finished stages under a folder left; figures that hold times are no content."""

    def read(out: Path) -> dict[str, str]:
        records = {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("*/done.json"))}
        return {f"{name}/{file}": d for name, done in records.items() for file, d in done["outputs"].items()}

    return read
