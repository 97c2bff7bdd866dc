"""Folders as they are found: heads that differ, shards against their index, other code's files, models of other kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from accord.errors import UserError
from accord.models.hf_format import INDEX, WEIGHTS
from accord.models.open import open_backbone
from accord.training.artifact import open_model
from accord.types import Packed
from tests.models.folders import IDS, LLAMA, llama, new_model, own_logits, save, texts

CPU = torch.device("cpu")
GPT2 = {"vocab_size": IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": 256}
HEADS = {"llama": LLAMA, "mamba": {"vocab_size": IDS, "hidden_size": 32, "num_hidden_layers": 2}, "gpt2": GPT2}


def change(folder: str, edit: Callable[[dict[str, torch.Tensor]], None], name: str = WEIGHTS) -> None:
    tensors = load_file(Path(folder) / name)
    edit(tensors)
    save_file(tensors, Path(folder) / name, metadata={"format": "pt"})


def configure(folder: str, **values: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def in_shards(folder: str) -> dict[str, Path]:
    """Divides the weights of a folder into two files; those of the final norm are in both, an old copy in the second."""
    path = Path(folder)
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    names = sorted(tensors)
    final = next(name for name in names if name.endswith(("model.norm.weight", "ln_f.weight")))
    rest = [name for name in names if name != final]
    parts = {"one.safetensors": [final, *rest[::2]], "two.safetensors": rest[1::2]}
    index = {name: file for file, some in parts.items() for name in some}
    for file, some in parts.items():
        stale = {final: torch.full_like(tensors[final], 9.0)} if file == "two.safetensors" else {}
        save_file({**{name: tensors[name] for name in some}, **stale}, path / file, metadata={"format": "pt"})
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return {name: path / name for name in (*parts, INDEX)}


# ------------------------------------------------------------------------------------- heads
@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_a_head_of_its_own_is_kept_whatever_the_config_says(family: str, tmp_path: Path) -> None:
    """As transformers does: config.json says tied, the file holds another head."""
    import transformers

    folder = save(new_model(family, **HEADS[family], tie_word_embeddings=True), tmp_path / "model")
    head = torch.randn(IDS, 32, generator=torch.Generator().manual_seed(5))
    change(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    some = texts(9, 4)
    wanted = own_logits(peer, some)
    model = open_backbone(folder)
    torch.testing.assert_close(model.logits(model(Packed.of(some))), wanted, rtol=1e-4, atol=1e-4)
    (tmp_path / "saved").mkdir()
    model.save(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    again = open_backbone(tmp_path / "saved")
    torch.testing.assert_close(again.logits(again(Packed.of(some))), wanted, rtol=1e-4, atol=1e-4)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    torch.testing.assert_close(own_logits(peer, some), wanted, rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_is_said_in_the_plan(stage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(llama(tie_word_embeddings=True), tmp_path / "model")
    change(folder, lambda tensors: tensors.update({"lm_head.weight": torch.randn(IDS, 32)}))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "hi", "completion": "ho"}) + "\n")
    stage("sft", {"model": {"base_model": folder}, "data": {"train": str(rows)}, "training": {"batch_size": 1}})
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the head differs from the embeddings although config.json says that they are tied") == 1
    saved = tmp_path / "out" / "sft" / "model"
    tensors = load_file(saved / WEIGHTS)
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_a_head_that_equals_the_embeddings_stays_tied(tmp_path: Path) -> None:
    folder = save(llama(tie_word_embeddings=True), tmp_path / "model")
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = open_backbone(folder)
    assert model.notes == ()
    assert not any("lm_head" in name for name, _ in model.named_parameters())


# ------------------------------------------------------------------------------------- shards
def test_the_index_decides_where_two_shards_hold_a_tensor(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path / "model")
    wanted = open_backbone(folder).state_dict()
    in_shards(folder)
    found = open_backbone(folder).state_dict()
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_a_tensor_in_two_shards_is_refused_where_transformers_would_take_either(tmp_path: Path) -> None:
    folder = save(new_model("gpt2", **GPT2), tmp_path / "model")
    in_shards(folder)
    with pytest.raises(
        UserError, match=rf"{INDEX}: tensor \S*ln_f.weight is in one\.safetensors, and in two\.safetens"
    ):
        open_backbone(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("index", rf"{INDEX}: no such file, but one\.safetensors is here, which is a part of the weights; download"),
        ("file", r"two\.safetensors: no such file; download the folder again"),
        ("tensor", rf"{INDEX}: tensor absent is not in one\.safetensors; download the folder again"),
    ],
)
def test_shards_that_are_not_whole_are_refused_by_name(family: str, fault: str, said: str, tmp_path: Path) -> None:
    folder = save(new_model(family, **HEADS[family]), tmp_path / "model")
    files = in_shards(folder)
    change(folder, lambda t: [t.pop(name) for name in list(t) if bool((t[name] == 9.0).all())], "two.safetensors")
    if fault == "index":
        files[INDEX].unlink()
    elif fault == "file":
        files["two.safetensors"].unlink()
    else:
        index = json.loads(files[INDEX].read_text())
        files[INDEX].write_text(json.dumps({"weight_map": {**index["weight_map"], "absent": "one.safetensors"}}))
    with pytest.raises(UserError, match=said):
        open_backbone(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tensor_that_is_missing_is_never_random(family: str, tmp_path: Path) -> None:
    folder = save(new_model(family, **HEADS[family]), tmp_path / "model")
    name = sorted(load_file(Path(folder) / WEIGHTS))[3]
    change(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=rf"model: .*tensor {name} is missing"):
        open_backbone(folder)


def test_a_tensor_without_a_place_is_said(tmp_path: Path) -> None:
    folder = save(new_model("gpt2", **GPT2), tmp_path / "model")
    change(folder, lambda tensors: tensors.update({"extra.weight": torch.ones(2)}))
    assert open_backbone(folder).notes[-1] == "its tensor extra.weight has no place in this model and is left out"


# ------------------------------------------------------------------------------------- other kinds of folders
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pickle_of_weights_is_named_and_not_read(family: str, tmp_path: Path) -> None:
    folder = save(new_model(family, **HEADS[family]), tmp_path / "model")
    (Path(folder) / WEIGHTS).rename(Path(folder) / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin, a pickle, which can run code and is not read; take"):
        open_backbone(folder)


def test_a_folder_of_the_original_mamba_code_is_named_with_where_to_get_the_other(tmp_path: Path) -> None:
    """As state-spaces/mamba-130m has it."""
    config = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UserError) as caught:
        open_backbone(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: a folder of the original Mamba code (d_model and ssm_cfg in config.json)")
    assert said.endswith("whose name ends in -hf (state-spaces/mamba-130m-hf for state-spaces/mamba-130m).")


def test_a_config_without_a_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: names no model_type, so its family is unknown"):
        open_backbone(tmp_path)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = save(new_model("gpt2", **GPT2), tmp_path / "model")
    code = Path(folder) / "modeling_mine.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: pass\nclass Config: pass\n")
    classes = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Mine"}
    configure(folder, model_type="mine", auto_map=classes, architectures=["Mine"])
    with pytest.raises(UserError, match=r"needs code that comes with the model, which is never run; take a model that"):
        open_backbone(folder)
    assert not (tmp_path / "ran").exists()


def test_a_family_that_is_no_causal_model_is_said(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": IDS, "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(UserError, match=r"model: is a T5, not a causal language model, so it cannot write replies"):
        open_backbone(save(model, tmp_path / "model"))


def test_a_model_that_needs_an_encoder_is_refused_by_name(tmp_path: Path) -> None:
    """Its forward pass raises an error of its own."""
    sizes = {"d_model": 32, "decoder_layers": 1, "encoder_layers": 1, "decoder_attention_heads": 2}
    model = new_model("bart", vocab_size=IDS, decoder_ffn_dim=32, encoder_ffn_dim=32, **sizes)
    with pytest.raises(UserError, match=r"model: model type 'bart': its body and head, or its padding, do not give"):
        open_backbone(save(model, tmp_path / "model"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reward_model_of_another_library_is_no_policy(family: str, tmp_path: Path) -> None:
    """TRL's are sequence classifiers; transformers would give them a random vocabulary head."""
    import transformers

    config = transformers.CONFIG_MAPPING[family](**HEADS[family], num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    folder = save(model, tmp_path / "model")
    with pytest.raises(
        UserError, match=r"model: a reward model scores replies and writes none; name the language model"
    ):
        open_model(folder, CPU)
