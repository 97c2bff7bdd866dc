"""Export and import: an artifact leaves the registry and comes back unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from accord.data.tokenizer import small_tokenizer
from accord.errors import UserError
from accord.io.digests import verify
from accord.models.transformer import small_transformer
from accord.registry.export_target import EXPORT
from accord.registry.exports import export, import_folder
from accord.registry.manifest import publish
from accord.registry.store import Store, open_store
from accord.training.artifact import open_model, open_tokenizer
from accord.types import Packed


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


def test_safetensors_are_weights_and_config(ppo: Store, tmp_path: Path) -> None:
    export(ppo, "ppo", tmp_path / "out", "safetensors")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [EXPORT, "config.json", "model.safetensors"]
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
