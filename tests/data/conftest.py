"""Tokenizers trained here: a byte-level BPE with ChatML's special tokens, and plain ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from accord.data.tokenizer import Tokenizer, small_tokenizer

# ChatML with a system line of its own where the conversation brings none, as SmolLM2's does.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small and honest helper.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The cat sat on the mat, and the dog looked at the cat.",
    "What is the capital of France? The capital of France is Paris.",
    "user\nassistant\nsystem\nYou are a small and honest helper.",
    "Please write one short line about the sea:  blue, deep\n\n and cold!",
] * 8


def _train(specials: list[str], size: int = 420) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's: shifts offsets over spaces
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return backend


@pytest.fixture(scope="session")
def train_bpe() -> Callable[..., tokenizers.Tokenizer]:
    return _train


@pytest.fixture(scope="session")
def chatml_template() -> str:
    return CHATML


@pytest.fixture(scope="session")
def chatml() -> Tokenizer:
    """Named as SmolLM2-Instruct names them: BOS is <|im_start|>, EOS and pad are both <|im_end|>."""
    backend = _train(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"])
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    return Tokenizer(backend, named, CHATML)


@pytest.fixture(scope="session")
def plain() -> Tokenizer:
    """No chat template, no BOS."""
    return Tokenizer(_train(["<pad>", "</s>"]), {"pad_token": "<pad>", "eos_token": "</s>"})


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return small_tokenizer()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a file of JSON lines."""

    def write(*items: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        return path

    return write
