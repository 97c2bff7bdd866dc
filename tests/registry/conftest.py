"""Artifacts of a few bytes, and a registry to put them in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from accord.io.digests import content_digest
from accord.registry.family import Family, Record, ancestors, of_path, write_lineage
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


@pytest.fixture
def ppo(store: Store, make: Any) -> Store:
    """demo data → base → ppo, the last one with a reward function."""
    data = Record("demo/base.jsonl", "demo", "d" * 32, "data", seed=0)
    base = make("base", 1, "base", {"data.train": data.digest}, {data.digest: data})
    store.add(base)
    judge = Record("my:judge", "function", "my:judge", "function")
    digest = content_digest(base)
    parents = {"model.base_model": digest, "reward.source": "my:judge"}
    store.add(make("ppo", 2, "ppo", parents, {**of_path(base, digest), "my:judge": judge}))
    return store


def stage_folder(
    root: Path, name: str, file: str, content: str, record: dict[str, Any], config: dict[str, Any]
) -> Path:
    """A finished stage that wrote a data file."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / file).write_text(content)
    done = {"kind": name, "inputs": {}, "metrics": {}, "key": "k", **record}
    (folder / "done.json").write_text(json.dumps(done))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "out": str(root), **config}))
    return folder / file


@pytest.fixture
def world(tmp_path: Path, make: Any) -> dict[str, Path]:
    """demo → base → sft; sft, demo → pairs: each knows only what is beside it."""
    root = tmp_path / "project" / "rlhf"
    text = stage_folder(root, "demo", "base.jsonl", "{}\n", {}, {"base_rows": 3})
    prompts = root / "demo" / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    family = ancestors({"data.train": content_digest(text)}, {"data.train": str(text)})
    base = make("base", 1, "base", {"data.train": content_digest(text)}, family)
    of_base = {"model.base_model": content_digest(base)}
    sft = make("sft", 2, "sft", of_base, ancestors(of_base, {"model.base_model": str(base)}))
    inputs = {"model.base_model": content_digest(sft), "prompts": content_digest(prompts)}
    config = {"model": {"base_model": str(sft)}, "prompts": str(prompts), "noise": 0.4}
    pairs = stage_folder(root, "pairs", "preferences.jsonl", "{ }\n", {"inputs": inputs}, config)
    return {"text": text, "prompts": prompts, "base": base, "sft": sft, "pairs": pairs}


@pytest.fixture
def diamond() -> Family:
    """a → b, c → d, and a → d over two layers, with a function beside."""
    rows = [
        Record("a", "base", "aaaa"),
        Record("b <1>", "sft", "bbbb", parents={"model.base_model": "aaaa"}),
        Record("c", "reward", "cccc", parents={"model.base_model": "bbbb", "data.train": "ffff"}),
        Record("f.jsonl", "demo", "ffff", "data"),
        Record(
            "d",
            "ppo",
            "dddd",
            parents={"model.base_model": "bbbb", "reference": "aaaa", "reward.source": "cccc", "x": "m:f"},
        ),
        Record("m:f", "function", "m:f", "function"),
    ]
    return {r.digest: r for r in rows}
