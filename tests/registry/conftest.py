"""Artifacts of a few bytes, and a registry to put them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from accord.registry.family import Family, write_lineage
from accord.registry.manifest import publish, versions
from accord.registry.store import Store, open_store

Make = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "project" / "registry.sqlite")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make("sft", weights=1.0)`` publishes an artifact as a stage does and returns its folder."""

    def build(
        name: str = "sft",
        weights: float = 0.0,
        kind: str = "sft",
        parents: Mapping[str, str] | None = None,
        family: Family | None = None,
        **more: Any,
    ) -> Path:
        def write(folder: Path) -> None:
            save_file({"model.layers.0.w": torch.full((4, 2), float(weights))}, str(folder / "model.safetensors"))
            (folder / "config.json").write_text('{"model_type": "llama"}')
            write_lineage(folder, family or {})

        manifest = {
            "kind": kind,
            "name": name,
            "parents": dict(parents or {}),
            "metrics": {"nll": 1.0 + weights},
            "settings": {"training": {"learning_rate": 1e-3}},
            "seed": 0,
            "versions": versions(),
            "created": "2026-01-02T03:04:05+00:00",
        }
        target = tmp_path / "project" / "rlhf" / name / "model"
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(target, write, {**manifest, **more})
        return target

    return build
