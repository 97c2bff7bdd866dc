"""GGUF: transformers reads the same model and the same tokens back; llama.cpp too, where it is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.models.generation_config import add_end_token
from accord.models.gguf import open_gguf
from accord.models.mamba import small_mamba
from accord.models.transformer import Transformer
from accord.models.transformer_config import RopeScaling, TransformerConfig
from accord.registry.gguf import KINDS, gguf_name, interleaved, write_gguf
from tests.models.test_generation_config import write_base

gguf = pytest.importorskip("gguf")

TEXT = "<user>hello, you 2!\n<assistant>ok"
# Weights of deviation 0.08 give logits up to 3; the largest error found was .003, .074 and .88 of that.
BOUND = {"F16": 1e-2, "Q8_0": 0.2, "Q4_0": 1.8}
FAMILIES = {
    "llama": {},
    "grouped": {"n_kv_heads": 2},
    "mistral": {"family": "mistral", "n_kv_heads": 2},
    "qwen2": {"family": "qwen2", "n_kv_heads": 2, "qkv_bias": True},
    "untied": {"tied": False},
    "narrow": {"head_dim": 32, "n_heads": 2, "n_kv_heads": 1},
    "qwen3": {"family": "qwen3", "n_kv_heads": 2, "qk_norm": True, "head_dim": 128},
}
CONFIG = TransformerConfig(50, 128, 2, 4, 4, 32, 160, eos_ids=(1,), pad_id=0, rope_theta=5000.0, norm_eps=1e-5)


def folder_of(where: Path, **changes: Any) -> Path:
    torch.manual_seed(1)
    model = Transformer(replace(CONFIG, **changes))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.08 + ("norm" in name))
    model.save(where)
    small_tokenizer().save(where)
    return where


def logits(folder: Path, file: str = "") -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    how = {"gguf_file": file} if file else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    ids = torch.tensor([[2, *range(3, 40)]])
    with torch.no_grad():
        return model(ids).logits[0]  # type: ignore[no-any-return]


# ------------------------------------------------------------------ round trips
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_round_trip(tmp_path: Path, family: str) -> None:
    folder = folder_of(tmp_path / "m", **FAMILIES[family])
    expected = logits(folder)
    assert expected.abs().max() > 1, "a bound on small logits says nothing"
    errors = {}
    for kind in KINDS:
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)
        errors[kind] = float((logits(tmp_path, f"{kind}.gguf") - expected).abs().max())
        assert errors[kind] <= BOUND[kind], kind
    assert errors["F16"] < errors["Q8_0"] < errors["Q4_0"], "each was stored as it says"
    sizes = [(tmp_path / f"{kind}.gguf").stat().st_size for kind in KINDS]
    assert sizes == sorted(sizes, reverse=True)


def test_our_own_reader_gives_the_same_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m")
    write_gguf(folder, tmp_path / "m.gguf", "F16")
    ours = open_gguf(tmp_path / "m.gguf")
    for name, x in Transformer.open(folder).state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], x, rtol=1e-3, atol=1e-4)
    assert ours.config.rope_theta == 5000.0
    assert ours.config.norm_eps == pytest.approx(1e-5)


def test_what_each_matrix_is_stored_as(tmp_path: Path) -> None:
    """Norms F32, embedding Q8_0 in a Q4_0 file, rows that are no multiple of 32 in F16."""
    folder = folder_of(tmp_path / "m", d_ff=144, tied=False)
    write_gguf(folder, tmp_path / "m.gguf", "Q4_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["output_norm.weight"] == kinds["blk.1.ffn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_up.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert len(kinds) == 3 + 2 * 9


def test_rotary_pairs_are_interleaved() -> None:
    """Two heads of four: (a0 a1 | b0 b1) becomes a0 b0 a1 b1."""
    assert interleaved(torch.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rope_scaling_factors_are_llamas(tmp_path: Path) -> None:
    """Llama 3.1's rule: wavelengths under 64/4 stay, those over 64 are divided by 8, between them a ramp."""
    folder = folder_of(tmp_path / "m", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
    notes = write_gguf(folder, tmp_path / "m.gguf", "F16")
    assert any("rotary" in note for note in notes)
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["rope_freqs.weight"]
    expected = []
    for i in range(16):
        wavelength = 2 * torch.pi * 5000.0 ** (2 * i / 32)
        kept = min(1.0, max(0.0, (64 / wavelength - 1.0) / 3.0))
        expected.append(1 / (kept + (1 - kept) / 8))
    assert stored.tolist() == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ tokens
def test_the_small_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    notes = write_gguf(folder_of(tmp_path / "m"), tmp_path / "m.gguf", "F16")
    assert any("lower case" in note for note in notes)
    back = Tokenizer.from_gguf(tmp_path / "m.gguf")
    assert back.encode(TEXT) == tokenizer.encode(TEXT)
    assert back.decode(back.encode(TEXT), skip_special=False) == TEXT
    assert (back.eos_id, back.pad_id, back.chat_template) == (
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.chat_template,
    )


def byte_level(folder: Path, digits: bool) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [pre_tokenizers.Digits(individual_digits=True), cut]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if digits else cut
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["hello there, hello you", "naïve hello 1234"] * 20, trainer)
    tokenizer = Tokenizer(backend, {"pad_token": "<pad>", "eos_token": "<eos>"})
    tokenizer.save(folder)
    return tokenizer


@pytest.mark.parametrize("digits", [False, True])
def test_a_byte_level_tokenizer_comes_back(tmp_path: Path, digits: bool) -> None:
    folder = folder_of(tmp_path / "m", vocab_size=320)
    (folder / "chat_template.jinja").unlink()
    tokenizer = byte_level(folder, digits)
    assert write_gguf(folder, tmp_path / "m.gguf", "Q8_0") == []
    back = Tokenizer.from_gguf(tmp_path / "m.gguf")
    text = "Hello there, naïve you ☂\n  hello<eos>"
    assert back.encode(text) == tokenizer.encode(text)
    assert back.decode(back.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == ("smollm" if digits else "gpt-2")
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 320
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == "[PAD319]"


# ------------------------------------------------------------------ refusals
def test_what_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    small_mamba(64, 1, 50, 1, 0).save(str(tmp_path / "mamba"))
    small_tokenizer().save(tmp_path / "mamba")
    with pytest.raises(UserError, match="not for 'mamba'; use --format hf"):
        write_gguf(tmp_path / "mamba", tmp_path / "m.gguf", "F16")
    window = folder_of(tmp_path / "window", family="mistral", sliding_window=8)
    with pytest.raises(UserError, match="sliding window"):
        write_gguf(window, tmp_path / "m.gguf", "F16")
    large = folder_of(tmp_path / "large")
    model = Transformer.open(large)
    with torch.no_grad():
        model.embed_tokens.weight[0, 0] = 1e6
    model.save(large)
    with pytest.raises(UserError, match=r"token_embd.weight: has values that F16 cannot"):
        write_gguf(large, tmp_path / "m.gguf", "F16")
    with pytest.raises(UserError, match="has no name in GGUF"):
        gguf_name("model.layers.0.mixer.A_log")
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.tmp")), "nothing half-written"


def test_a_tokenizer_that_splits_in_its_own_way_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", vocab_size=320)
    byte_level(folder, digits=False)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex": true', '"use_regex": false'))
    with pytest.raises(UserError, match=r"tokenizer.json: the pre-tokenizer has no name"):
        write_gguf(folder, tmp_path / "m.gguf", "F16")


@pytest.mark.oracle
@pytest.mark.parametrize("family", ["llama", "grouped", "mistral", "qwen2", "untied", "qwen3", "stretched"])
def test_llama_cpp_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    changes = {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)} if family == "stretched" else FAMILIES[family]
    folder = folder_of(tmp_path / "m", **changes)
    expected = logits(folder)
    for kind in ("F16", "Q8_0"):
        write_gguf(folder, tmp_path / f"{kind}.gguf", kind)  # type: ignore[arg-type]
        model = llama_cpp.Llama(str(tmp_path / f"{kind}.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
        ids = [2, *range(3, 40)]
        model.eval(ids)
        found = torch.from_numpy(model.scores[: len(ids)].copy())
        assert float((found - expected).abs().max()) <= BOUND[kind]
        tokens = model.tokenize(TEXT.encode(), add_bos=False, special=True)
        assert tokens == small_tokenizer().encode(TEXT)
        assert model.token_eos() == small_tokenizer().eos_id


def test_both_end_tokens_are_written(tmp_path: Path) -> None:
    """Of a base whose config names another end token than its chat template: llama.cpp stops at either."""
    folder = write_base(tmp_path / "base", "llama")
    add_end_token(folder, Tokenizer.open(folder).eos_id)
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    ids = {name: int(fields[f"tokenizer.ggml.{name}_token_id"].contents()) for name in ("eos", "eot", "padding")}
    assert ids == {"eos": 258, "eot": 256, "padding": 256}


@pytest.mark.parametrize("sampled", [True, False])
def test_sampling_settings_are_those_of_the_model(tmp_path: Path, sampled: bool) -> None:
    """llama.cpp takes ``general.sampling`` as its defaults; transformers ignores settings of a model that is not sampled."""
    folder = write_base(tmp_path / "base", "llama")
    settings = {"do_sample": sampled, "temperature": 0.25, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.25}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    write_gguf(folder, tmp_path / "model.gguf", "F16")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    start = "general.sampling."
    found = {key.removeprefix(start): field.contents() for key, field in fields.items() if key.startswith(start)}
    assert found == ({"temp": 0.25, "top_k": 20, "top_p": 0.5, "penalty_repeat": 1.25} if sampled else {})
