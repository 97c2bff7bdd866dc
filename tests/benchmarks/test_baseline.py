"""benchmarks/baseline.py: every number that is not the same is found, to the last bit."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_baseline", ROOT / "benchmarks" / "baseline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_bit_is_a_difference_and_nan_is_equal_to_nan(baseline: ModuleType) -> None:
    old: dict[str, Any] = {"sft": {"step 1 loss": [0.1], "step 2 loss": [0.3], "step 2 kl": [math.nan]}}
    new = {"sft": {"step 1 loss": [math.nextafter(0.1, 1)], "step 2 loss": [0.3], "step 2 kl": [math.nan]}}
    assert baseline.differences(old, old) == []
    assert baseline.differences(new, old) == ["sft step 1 loss: 0.1 became 0.10000000000000002"]


def test_a_missing_number_is_a_difference_and_a_new_one_is_not(baseline: ModuleType) -> None:
    old = {"sft": {"step 1 loss": [0.5]}, "dpo": {"weights": "ab"}}
    assert baseline.differences({"sft": {"step 1 nll": [0.5]}}, old) == [
        "sft step 1 loss: 0.5 is gone",
        'dpo weights: "ab" is gone',
    ]
    assert baseline.differences({**old, "kto": {"weights": "cd"}}, old) == []


def test_metrics_of_a_step_come_in_the_order_of_their_lines(baseline: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "loss": 1.0, "kl": 0.0}\n')
    assert dict(baseline.metrics_of(tmp_path)) == {"step 1 loss": [2.0, 1.0], "step 1 kl": [0.0]}


def test_a_digest_depends_on_names_shapes_and_bits_and_not_on_order(baseline: ModuleType, tmp_path: Path) -> None:
    def digest(state: dict[str, torch.Tensor]) -> str:
        torch.save({"model_state_dict": state}, tmp_path / "m_final.pt")
        found: str = baseline.digest_of_tensors(tmp_path / "m_final.pt")
        save_file(state, tmp_path / "m.safetensors")
        assert baseline.digest_of_tensors(tmp_path / "m.safetensors") == found
        return found

    a, b = torch.arange(4.0), torch.tensor(1.5)
    same = digest({"a": a, "b": b})
    assert digest({"b": b, "a": a}) == same
    others = [{"a": a.reshape(2, 2), "b": b}, {"a": a, "c": b}, {"a": a, "b": b.nextafter(torch.tensor(2.0))}]
    assert len({same, *map(digest, others)}) == 4


def test_numbers_of_nested_results_are_named_by_their_path(baseline: ModuleType) -> None:
    results = {"ppo": {"win_rate": 0.7, "ci95": [0.6, 0.8], "text": "good"}}
    assert dict(baseline.leaves(results, "results")) == {
        "results.ppo.win_rate": 0.7, "results.ppo.ci95.0": 0.6, "results.ppo.ci95.1": 0.8,
    }  # fmt: skip
