"""No reader of a file lets a raw error through, whatever the file holds: only UserError, which names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from accord.config.load import parse_override
from accord.data.chat_template import render_template
from accord.data.tokenizer import SMALL_TEMPLATE, Tokenizer, small_tokenizer
from accord.io.digests import read_manifest
from accord.io.gguf_header import check_gguf
from accord.io.readers import read_appended_rows, read_json, read_jsonl, read_yaml
from accord.io.records import Begun, Done, Failure, LastRun, Lock, Manifest, Progress, read_metrics, read_record
from accord.models.hf_format import INDEX, read_weights
from accord.models.open import open_backbone, small_backbone
from accord.models.reward import HEAD_CONFIG, HEAD_FILE, RewardMLP, RewardModel
from accord.registry.family import read_lineage
from accord.training.checkpoint import Checkpoint, read_pt, write_pt
from tests.properties.fuzz import changed, damaged, few, quick, refused_or_read

YAML = b"model:\n  base_model: &a base\n  layers: [1, 2.5, true]\nother: *a\nname: 'x'\n"
ROWS = b'{"prompt": "a", "n": [1, {"b": null}]}\n{"prompt": "\\u00e9"}\n'
DONE = {
    **{
        "kind": "sft",
        "key": "k",
        "inputs": {"a": "b"},
        "sources": {"a": "b"},
        "settings": {"x": {"y": [1]}},
        "version": 1,
    },
    **{"why": ["new"], "metrics": {"loss": 1.5}, "seconds": 2.0, "peak_rss_mb": 1.0, "outputs": {"m": "d"}},
    **{"versions": {"accord": "1"}, "started": 1.0, "finished": 2.0},
}
MANIFEST = {"digest": "ab" * 16, "files": {"x": "ab"}, "name": "m", "kind": "sft", "parents": {}, "metrics": {"a": 1}}
LINEAGE = {
    "format": 1,
    "records": [{"name": "a", "kind": "sft", "digest": "ab", "parents": {"x": "cd"}, "metrics": {}}],
}
RECORDS: dict[str, tuple[Any, Any]] = {
    "done": (Done, DONE),
    "begun": (Begun, DONE),
    "failed": (Failure, {"key": "k", "error": "e", "step": 1}),
    "lock": (Lock, {"pid": 1, "host": "h", "start": "s", "since": "t"}),
    "last": (LastRun, {"file": "f", "overrides": ["a=1"]}),
    "manifest": (Manifest, MANIFEST),
    "progress": (
        Progress,
        {"pid": 1, "step": 1, "total": 2, "first": 0, "begun": 1.0, "updated": 2.0, "metrics": {"a": 1.0}},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ------------------------------------------------------------------ text
@quick
@given(damaged(YAML))
@example(b"a: &a [*a]\n")
@example(b"a: &a {b: *a}\n")
@example(b"a: !!int abc\n")
@example(b"a: !!timestamp abc\n")
@example(b"a: 2026-99-99\n")
@example(b"a: !!python/object:os.system x\n")
@example(b"? [1]\n: 2\n")
@example(b"1: 2\n")
@example(b"a: 0x" + b"f" * 5000)
@example(b'a: "\\ud800"\n')
@example(b"a: {<<: 5}\n")
def test_any_config_file(place: Path, content: bytes) -> None:
    path = place / "c.yaml"
    path.write_bytes(content)
    refused_or_read(lambda: read_yaml(path), path)


@quick
@given(st.text(max_size=60))
@example("[" * 5000)
@example("9" * 5000)
@example("!!bool maybe")
@example("\ud800")
def test_any_override(text: str) -> None:
    refused_or_read(lambda: parse_override(f"seed={text}"), "override ")


@quick
@given(damaged(ROWS))
@example(b'{"a": "\\ud800"}\n')
@example(b'{"a": NaN}\n')
@example(b'{"a": 1, "a": 2}\n')
@example(b'{"a": ' + b"9" * 5000 + b"}\n")
def test_any_file_of_rows(place: Path, content: bytes) -> None:
    path = place / "rows.jsonl"
    path.write_bytes(content)
    refused_or_read(lambda: list(read_jsonl(path)), path)
    refused_or_read(lambda: read_appended_rows(path), path)
    refused_or_read(lambda: read_metrics(path), path)
    refused_or_read(lambda: read_json(path, "copy it again"), path)


# ------------------------------------------------------------------ our records
@pytest.mark.parametrize("name", RECORDS)
@quick
@given(data=st.data())
def test_any_record(place: Path, name: str, data: st.DataObject) -> None:
    shape, valid = RECORDS[name]
    path = place / f"{name}.json"
    path.write_text(json.dumps(data.draw(changed(valid))))
    refused_or_read(lambda: read_record(path, shape, "remove it"), path)


@quick
@given(changed(MANIFEST), changed(LINEAGE))
def test_any_manifest_and_lineage(place: Path, manifest: Any, lineage: Any) -> None:
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "lineage.json").write_text(json.dumps(lineage))
    refused_or_read(lambda: read_manifest(place), place / "manifest.json")
    refused_or_read(lambda: read_lineage(place), place / "lineage.json")


class Part:
    """A part of a saved state, as strict as an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        return {"weight": torch.arange(3.0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.zeros(3).copy_(state["weight"])


@few
@given(data=st.data())
def test_any_saved_state(place: Path, data: st.DataObject) -> None:
    path = place / "state.pt"
    checkpoint = Checkpoint(path, "f", {"part": Part()})
    checkpoint.save(5)
    valid = path.read_bytes()
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(valid)))
    else:
        content = read_pt(path)
        key = data.draw(st.sampled_from(["fingerprint", "step", "rng", "parts"]))
        write_pt(path, {**content, key: data.draw(st.sampled_from([None, 1, "x", [], {}, {"part": {}}, {"part": 3}]))})
    refused_or_read(checkpoint.restore, path)


# ------------------------------------------------------------------ models
@pytest.fixture(scope="module", params=["transformer", "mamba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = small_tokenizer()
    small_backbone(request.param, 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id).save(str(folder))
    tokenizer.save(folder)
    return folder


@few
@given(data=st.data())
def test_any_config_of_a_model(model: Path, data: st.DataObject) -> None:
    path = model / "config.json"
    valid = path.read_text()
    family = json.loads(valid)["model_type"]
    try:
        content = data.draw(changed(json.loads(valid)))
        if isinstance(content, dict):
            content["model_type"] = family  # another family is transformers' to open
        path.write_text(json.dumps(content))
        refused_or_read(lambda: open_backbone(model), model)
    finally:
        path.write_text(valid)


STATE = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.zeros((), dtype=torch.float16)}
WEIGHTS = save(STATE)
HEADER = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])


@quick
@given(st.one_of(damaged(WEIGHTS), changed(HEADER).map(lambda header: _with_header(header))))
@example(save({"a": torch.zeros(2, dtype=torch.int32)}))
@example((2**62).to_bytes(8, "little") + b"{}")
def test_any_weights(place: Path, content: bytes) -> None:
    path = place / "model.safetensors"
    path.write_bytes(content)
    refused_or_read(lambda: read_weights(place), path)


def _with_header(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + WEIGHTS[8 + int.from_bytes(WEIGHTS[:8], "little") :]


@quick
@given(changed({"metadata": {"total_size": 1}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
@example({"weight_map": {"a": "../one.safetensors"}})
@example({"weight_map": {"a": "absent.safetensors"}})
@example({"weight_map": {"absent": "one.safetensors"}})
def test_any_index_of_shards(tmp_path: Path, content: Any) -> None:
    (tmp_path / "one.safetensors").write_bytes(WEIGHTS)
    (tmp_path / INDEX).write_text(json.dumps(content))
    refused_or_read(lambda: read_weights(tmp_path), tmp_path)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    RewardModel(small_backbone("transformer", 32, 1, 50, 1, 0), RewardMLP(32, 4, 2), "mean").save(str(folder))
    return folder


@few
@given(data=st.data())
def test_any_reward_head(reward: Path, data: st.DataObject) -> None:
    for name in (HEAD_CONFIG, HEAD_FILE):
        path = reward / name
        valid = path.read_bytes()
        try:
            if name == HEAD_CONFIG:
                path.write_text(json.dumps(data.draw(changed(json.loads(valid)))))
            else:
                path.write_bytes(data.draw(damaged(valid)))
            refused_or_read(lambda: RewardModel.open(reward), reward)
        finally:
            path.write_bytes(valid)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("block_count", 1), ("embedding_length", 32), ("feed_forward_length", 64)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@quick
@given(data=st.data())
def test_any_gguf_header(place: Path, gguf_file: bytes, data: st.DataObject) -> None:
    path = place / "x.gguf"
    path.write_bytes(gguf_file)
    assert not refused_or_read(lambda: check_gguf(path), path)
    at = data.draw(st.integers(0, 400))
    new = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
    path.write_bytes(data.draw(st.sampled_from([gguf_file[:at] + new + gguf_file[at + len(new) :], gguf_file[:at]])))
    refused_or_read(lambda: check_gguf(path), path)


# ------------------------------------------------------------------ tokenizers and templates
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@few
@given(data=st.data())
def test_any_tokenizer(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save(folder)
    content = data.draw(changed(json.loads((folder / name).read_text())))
    (folder / name).write_text(json.dumps(content))
    refused_or_read(lambda: Tokenizer.open(folder).encode("what, 3 cats?"), "tokenizer" if content else folder)


PIECES = ("{{", "}}", "{%", "%}", "for x in messages", "endfor", "x", "1/0", "10**9", "range(10**9)", "'a'*10**9", "{#")
OF_PIECES = st.lists(st.sampled_from(PIECES)).map(" ".join)
DAMAGED = damaged(SMALL_TEMPLATE.encode()).map(lambda content: content.decode("utf-8", "replace"))


@quick
@given(st.one_of(OF_PIECES, DAMAGED))
def test_any_template(template: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    refused_or_read(lambda: render_template(template, {"eos_token": "</s>"}, messages, True), "the chat template")
