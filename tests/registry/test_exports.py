"""Export and import, and two versions compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.io.digests import content_digest, verify
from accord.models.transformer import small_transformer
from accord.registry.card import card
from accord.registry.compare import difference, group, weight_distance
from accord.registry.exports import export, import_folder
from accord.registry.family import Record, of_path
from accord.registry.manifest import publish
from accord.registry.store import Store, open_store
from accord.training.artifact import open_model, open_tokenizer
from accord.types import Packed


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


# ------------------------------------------------------------------ the whole artifact
def test_an_exported_artifact_is_imported_unchanged(ppo: Store, tmp_path: Path) -> None:
    path, notes = export(ppo, "ppo", tmp_path / "out", "hf")
    assert (path, notes) == (tmp_path / "out", [])
    verify(path)
    far = open_store(tmp_path / "far" / "r.sqlite")
    there, here = import_folder(far, path), ppo.find("ppo")
    assert (there.label, there.digest, there.metrics, there.settings) == (
        "ppo@1",
        here.digest,
        here.metrics,
        here.settings,
    )
    assert {r.name for r in far.lineage(there).values()} == {"demo/base.jsonl", "base", "my:judge", "ppo"}
    assert import_folder(far, path, "mine").label == "mine@1"
    assert import_folder(far, path).label == "ppo@1", "the same again is the same"


def test_figures_and_names_of_the_registry_go_out(ppo: Store, make: Any, tmp_path: Path) -> None:
    """One folder serves two names; each goes out with its own manifest."""
    model = make("ppo", 2, "ppo", metrics={"score": 5.0})
    ppo.add(model, "twin")
    export(ppo, "twin", tmp_path / "out", "hf")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["name"], manifest["metrics"]) == ("twin", {"score": 5.0})
    assert json.loads((ppo.find("ppo").folder / "manifest.json").read_text())["name"] == "ppo"


@pytest.mark.parametrize("harmed", ["model.safetensors", "config.json", "lineage.json"])
def test_one_changed_byte_is_refused_with_the_files_name(ppo: Store, tmp_path: Path, harmed: str) -> None:
    export(ppo, "ppo", tmp_path / "out", "hf")
    content = bytearray((tmp_path / "out" / harmed).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / harmed).write_bytes(bytes(content))
    far = open_store(tmp_path / "far" / "r.sqlite")
    with pytest.raises(UserError, match=f"{harmed}: changed"):
        import_folder(far, tmp_path / "out")
    assert far.list() == []


def test_an_old_artifact_is_checked_as_a_whole(store: Store, make: Any) -> None:
    model = make()
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["files"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert import_folder(store, model.parent).label == "sft@1", "a stage's folder serves too"
    (model / "config.json").write_text("{ }")
    with pytest.raises(UserError, match="do not match the digest"):
        import_folder(store, model)


def test_what_is_damaged_does_not_go_out(ppo: Store, tmp_path: Path) -> None:
    folder = ppo.find("ppo").folder
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("{}")
    for form in ("hf", "safetensors", "gguf"):
        with pytest.raises(UserError, match=r"config.json: changed"):
            export(ppo, "ppo", tmp_path / "out", form)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_exports_only(ppo: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for form in ("hf", "safetensors"):
        with pytest.raises(UserError, match="has other content"):
            export(ppo, "ppo", tmp_path / "mine", form)  # type: ignore[arg-type]
    assert (tmp_path / "mine" / "thesis.txt").exists()
    export(ppo, "base", tmp_path / "out", "hf")
    export(ppo, "ppo", tmp_path / "out", "hf")
    assert content_digest(tmp_path / "out") == ppo.find("ppo").digest
    with pytest.raises(UserError, match="is a file"):
        export(ppo, "ppo", tmp_path / "mine" / "thesis.txt", "hf")


def test_safetensors_are_weights_and_config(ppo: Store, tmp_path: Path) -> None:
    export(ppo, "ppo", tmp_path / "out", "safetensors")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.w"].tolist() == [[2.0, 2.0]] * 4


def test_an_export_opens_without_accord(store: Store, tmp_path: Path) -> None:
    """transformers gives the same logits and the same ids as we do; its folder is no more than that."""
    torch.manual_seed(0)
    model, tokenizer = small_transformer(32, 2, 50, 1, 0), small_tokenizer()

    def write(folder: Path) -> None:
        model.save(folder)
        tokenizer.save(folder)

    publish(tmp_path / "sft" / "model", write, {"name": "sft", "kind": "sft"})
    store.add(tmp_path / "sft" / "model")
    shutil.rmtree(tmp_path / "sft")
    export(store, "sft", tmp_path / "out", "hf")
    import transformers

    ids = tokenizer.encode("<user>hello<assistant>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("<user>hello<assistant>").input_ids == ids
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = open_model(str(tmp_path / "out"), torch.device("cpu"))
    expected = other(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours.logits(ours(Packed.of([ids]))), expected, rtol=1e-4, atol=1e-5)
    assert open_tokenizer(str(tmp_path / "out")).digest() == tokenizer.digest()


# ------------------------------------------------------------------ the card
def test_a_card_says_what_the_record_says(ppo: Store, tmp_path: Path) -> None:
    export(ppo, "ppo", tmp_path / "out", "hf")
    text = (tmp_path / "out" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["accord", "base", "ppo"],
    }
    titles = [line for line in body.splitlines() if line.startswith("#")]
    assert titles == ["# ppo", "## Data", "## Training", "## Evaluation", "## Limits", "## Use"]
    assert f"| demo/base.jsonl | `{'d' * 16}` | stage `demo` | base (data.train) |" in body
    assert f"| base@1 | base | `{ppo.find('base').digest[:16]}` | learning_rate 0.001 | 0 |" in body
    assert "| `nll` | 3 |" in body
    assert "on the training data; none of them is on held-out data" in body
    assert "accord's small world" in body
    assert ppo.find("ppo").digest in body


def test_a_card_claims_no_test_that_was_not_made() -> None:
    reward = Record("r", "reward", "e" * 32, metrics={"heldout_accuracy": 0.8})
    text = card(reward.digest, {reward.digest: reward}, {})
    assert "text-classification" in text
    assert "are on held-out data" in text
    assert "No data file is recorded" in text
    bare = Record("b", "pretrained", "f" * 32)
    text = card(bare.digest, {bare.digest: bare}, {})
    assert "No metric is recorded" in text
    assert "are its authors" in text
    assert "small world" not in text


# ------------------------------------------------------------------ differences
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
