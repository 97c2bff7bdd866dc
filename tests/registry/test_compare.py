"""Two versions compared: settings, data, figures and the distance of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from accord.errors import UserError
from accord.registry.compare import difference, group, weight_distance
from accord.registry.family import Record
from accord.registry.store import Store


def test_the_distance_of_weights_equals_its_hand_computed_value(tmp_path: Path) -> None:
    """Layer 0: |(3, 4) - (3, 0)| / |(3, 4)| = 4 / 5; layer 10 with two tensors: √(1 + 3) / √(4 + 12) = 1 / 2."""
    a = {"model.layers.0.w": [3.0, 4.0], "model.layers.10.a": [2.0], "model.layers.10.b": [2.0, 2.0, 2.0],
         "model.norm.weight": [1.0], "lost": [1.0], "shape": [1.0]}  # fmt: skip
    b = {"model.layers.0.w": [3.0, 0.0], "model.layers.10.a": [1.0], "model.layers.10.b": [1.0, 1.0, 1.0],
         "model.norm.weight": [1.0], "shape": [1.0, 1.0]}  # fmt: skip
    for name, state in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        tensors = {k: torch.tensor(v) for k, v in state.items()}
        some = dict(list(tensors.items())[:2])
        save_file(some, str(tmp_path / name / "model-1.safetensors"))
        save_file({k: v for k, v in tensors.items() if k not in some}, str(tmp_path / name / "model-2.safetensors"))
    distance, unlike = weight_distance(tmp_path / "a", tmp_path / "b")
    assert distance == pytest.approx({"layer 0": 0.8, "layer 10": 0.5, "norm": 0.0}, rel=1e-12)
    assert list(distance) == ["layer 0", "layer 10", "norm"]
    assert unlike == ("lost", "shape")
    with pytest.raises(UserError, match="no safetensors files"):
        weight_distance(tmp_path, tmp_path)


def test_weights_are_grouped_by_layer() -> None:
    names = {
        "model.layers.12.mlp.up_proj.weight": "layer 12",
        "backbone.layers.3.mixer.A_log": "layer 3",
        "model.embed_tokens.weight": "embed_tokens",
        "lm_head.weight": "lm_head",
        "linear": "linear",
    }
    assert {name: group(name) for name in names} == names


def test_what_differs_between_two_versions(store: Store, make: Any) -> None:
    files = {d * 32: Record(f"{d}.jsonl", "data", d * 32, "data") for d in "ab"}
    one = store.add(make(weights=1, parents={"data.train": "a" * 32}, family={"a" * 32: files["a" * 32]}))
    more = {"settings": {"training": {"learning_rate": 2e-3, "seed": 1}}, "metrics": {"nll": 2.0, "new": 0.5}}
    two = store.add(make(weights=2, parents={"data.train": "b" * 32}, family={"b" * 32: files["b" * 32]}, **more))
    found = difference(store, one, two)
    assert found.settings == {"training.learning_rate": ("0.001", "0.002"), "training.seed": ("", "1")}
    assert found.data == {"a.jsonl": ("a" * 16, ""), "b.jsonl": ("", "b" * 16)}
    assert found.metrics == {"nll": ("2", "2"), "new": ("", "0.5")}
    assert found.weights == pytest.approx({"layer 0": 1.0})
    same = difference(store, one, one)
    assert (same.settings, same.data, same.weights) == ({}, {}, {"layer 0": 0.0})
