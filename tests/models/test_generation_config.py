"""The end token that was taught is listed where other tools look, and the settings that came with the weights stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers import MambaConfig as HFMambaConfig

from accord.data.chat import prompt_ids
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.generation_config import add_end_token, end_ids, read_generation

SETTINGS = {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "max_new_tokens": 30}
"""As models come with them; transformers refuses to save a temperature without sampling."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_base(folder: Path, family: str) -> Path:
    """A small model with ChatML, whose config and generation settings name ``<|endoftext|>``, as base models do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokens = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokens.chat_template = TEMPLATE
    ids = {"eos_token_id": 256, "bos_token_id": None, "pad_token_id": 256}
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "intermediate_size": 64}
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids))
    elif family == "mamba":
        model = MambaForCausalLM(HFMambaConfig(**sizes, state_size=8, **ids))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=128, **ids))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({**SETTINGS, "eos_token_id": 256, "pad_token_id": 256}))
    return folder


@pytest.mark.parametrize("family", ["llama", "mamba", "gpt2"])
def test_transformers_stops_by_itself_after_training(family: str, tmp_path: Path, stage: Any) -> None:
    base = write_base(tmp_path / "base", family)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi", "completion": "ok"}\n' * 8)
    stage(
        "sft",
        {
            "model": {"base_model": str(base), "max_length": 64},
            "data": {"train": str(rows)},
            "training": {"learning_rate": 1e-2, "num_epochs": 40, "batch_size": 8},
        },
    )
    folder = tmp_path / "out" / "sft" / "model"
    config, settings = (json.loads((folder / n).read_text()) for n in ("config.json", "generation_config.json"))
    assert config["eos_token_id"] == settings["eos_token_id"] == [258, 256]
    assert {key: settings[key] for key in SETTINGS} == SETTINGS
    assert settings["pad_token_id"] == 256
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.open(folder)
    prompt = prompt_ids(tokenizer, "hi")
    with torch.no_grad():
        written = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
    assert written[0, len(prompt) :].tolist() == [*tokenizer.encode("ok"), 258]


def test_a_list_that_has_the_end_token_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": [7, 3], "x": 1}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 3], "top_k": 20}')
    before = [(tmp_path / name).read_bytes() for name in ("config.json", "generation_config.json")]
    add_end_token(tmp_path, 3)
    assert [(tmp_path / name).read_bytes() for name in ("config.json", "generation_config.json")] == before
    add_end_token(tmp_path, 9)
    assert json.loads((tmp_path / "config.json").read_text()) == {"eos_token_id": [9, 7, 3], "x": 1}
    assert read_generation(tmp_path) == {"eos_token_id": [9, 7, 3], "top_k": 20}


def test_a_folder_without_the_file_gets_one_only_for_another_end_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    add_end_token(tmp_path, 3)
    assert not (tmp_path / "generation_config.json").exists()
    add_end_token(tmp_path, 4)
    assert read_generation(tmp_path) == {"eos_token_id": [4, 3]}


@pytest.mark.parametrize("content", ['{"eos_token_id": "</s>"}', "[" * 100_000, '{"top_k": ' + "9" * 5000 + "}", "[]"])
def test_a_damaged_file_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json.*download the file again, or remove it"):
        read_generation(tmp_path)


def test_the_mark_that_lets_transformers_ignore_the_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"_from_model_config": true, "eos_token_id": 5}')
    assert read_generation(tmp_path) == {"eos_token_id": 5}


@pytest.mark.parametrize(("value", "ids"), [(None, ()), (3, (3,)), ([3, 4], (3, 4))])
def test_end_ids_of_every_form(value: object, ids: tuple[int, ...]) -> None:
    assert end_ids(value) == ids
