"""What an artifact records of its ancestors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.io.digests import content_digest, read_manifest, verify
from accord.models.open import open_backbone
from accord.models.transformer import small_transformer
from accord.registry.family import ancestors, from_json, of_path, read_lineage, to_json
from accord.registry.store import Store
from accord.runtime.run import Run
from accord.training.artifact import open_tokenizer, save_artifact


def test_a_data_file_knows_its_ancestors_through_its_stage(world: dict[str, Path]) -> None:
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    names = {r.name: (r.kind, r.form) for r in family.values()}
    assert names == {
        "demo/base.jsonl": ("demo", "data"),
        "base": ("base", "model"),
        "sft": ("sft", "model"),
        "demo/prompts.jsonl": ("demo", "data"),
        "pairs/preferences.jsonl": ("pairs", "data"),
    }
    own = family[content_digest(world["pairs"])]
    assert own.parents == {
        "model.base_model": content_digest(world["sft"]),
        "prompts": content_digest(world["prompts"]),
    }
    assert own.settings["noise"] == 0.4
    assert "out" not in own.settings


def test_ancestors_come_before_their_descendants(world: dict[str, Path]) -> None:
    order = list(of_path(world["pairs"], content_digest(world["pairs"])))
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert all(order.index(p) < order.index(d) for d, r in family.items() for p in r.parents.values())


def test_an_input_that_changed_since_is_not_taken_for_the_one_of_then(world: dict[str, Path], make: Any) -> None:
    was = content_digest(world["sft"])
    make("sft", 3)
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert family[was].name == "?"
    assert "base" not in {r.name for r in family.values()}


def test_what_no_stage_made_is_recorded_by_name_and_kind(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    sources = {"data.train": str(tmp_path / "mine.jsonl"), "model.base_model": str(tmp_path / "hf")}
    parents = {key: content_digest(Path(path)) for key, path in sources.items()}
    family = ancestors({**parents, "annotator": "my.module:judge"}, sources)
    assert [(r.name, r.kind, r.form) for r in family.values()] == [
        ("mine.jsonl", "data", "data"),
        ("hf", "model", "model"),
        ("my.module:judge", "function", "function"),
    ]


def test_records_are_read_back_as_written(world: dict[str, Path]) -> None:
    family = of_path(world["pairs"], content_digest(world["pairs"]))
    assert from_json(json.loads(json.dumps(to_json(family))), "x") == family
    newer = to_json(family)
    newer["records"][0]["a key of tomorrow"] = 1
    assert from_json(newer, "x") == family
    for content in ({}, {"records": [1]}, {"records": [{"name": "no digest"}]}):
        with pytest.raises(UserError, match=r"^x: .*records.*; copy the folder again"):
            from_json(content, "x")
    (world["sft"] / "lineage.json").write_text("{")
    with pytest.raises(UserError, match=r"lineage.json: not valid JSON"):
        read_lineage(world["sft"])


def test_a_stage_leaves_an_artifact_complete_by_itself(
    world: dict[str, Path], tmp_path: Path, open_run: Callable[..., Run]
) -> None:
    """Manifest, config, tokenizer, metrics, lineage; opens by itself; a changed byte is refused by name."""
    sources = {"model.base_model": str(world["sft"]), "data.train": str(world["pairs"]), "reward.source": "my:judge"}
    parents = {k: content_digest(Path(v)) if k != "reward.source" else v for k, v in sources.items()}
    settings = {"training": {"beta": 0.1}, "out": "somewhere", "seed": 5}
    with open_run("dpo", seed=5, sources=sources, parents=parents, settings=settings) as run:
        save_artifact(run, small_transformer(32, 1, 50, 1, 0), small_tokenizer(), "dpo", {"accuracy": 0.7})
    model = tmp_path / "out" / "dpo" / "model"
    manifest = read_manifest(model)
    assert manifest["settings"] == {"training": {"beta": 0.1}, "seed": 5}
    assert manifest["data"] == {"data.train": content_digest(world["pairs"])}
    assert manifest["base"] == content_digest(world["sft"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest["created"])
    moved = tmp_path / "another machine"
    model.rename(moved)
    verify(moved)
    names = {r.name for r in read_lineage(moved).values()}
    assert names == {"demo/base.jsonl", "base", "sft", "demo/prompts.jsonl", "pairs/preferences.jsonl", "my:judge"}
    open_backbone(moved)
    open_tokenizer(str(moved))
    content = bytearray((moved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model.safetensors: changed"):
        open_backbone(moved)
    open_tokenizer(str(moved))
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match=r"tokenizer.json: changed"):
        open_tokenizer(str(moved))


def test_the_registry_adds_what_an_old_artifact_does_not_record(store: Store, make: Any) -> None:
    base = store.add(make("base", 1, "base"))
    old = make("sft", 2, "sft", {"model.base_model": base.digest})
    (old / "lineage.json").unlink()
    family = store.lineage(store.add(old))
    assert {r.name for r in family.values()} == {"base", "sft"}
