"""Model folders with tokenizers of three kinds, and rows that are right for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

TURNS = (
    "{% for m in messages %}{{ START + m['role'] + '\n' + CONTENT + END + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ START + 'assistant\n' }}{% endif %}"
)
CHATML = TURNS.replace("START", "'<|im_start|>'").replace("END", "'<|im_end|>'")
PLAIN = CHATML.replace("CONTENT", "m['content']")
TOOLS = "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + PLAIN
DATED = "{{ '<|im_start|>system\n' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + PLAIN
THINKING = CHATML.replace("CONTENT", "(m['content'] if loop.last else m['content'].split('</think>')[-1])")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save(folder: Path, backend: tokenizers.Tokenizer, **config: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def byte_level(specials: Iterable[str] = SPECIALS) -> tokenizers.Tokenizer:
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "a")]
    vocab |= {a + b: len(vocab) + n for n, (a, b) in enumerate(merges)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*specials])
    return backend


def metaspace() -> tokenizers.Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:.,?!'-<>/\n"
    pieces = ["<unk>", "<s>", "</s>", "▁", *letters, "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``chatml`` (with tools), ``plain`` (without), ``dated``, ``thinking``: byte-level; ``metaspace``: no template, BOS;
    ``small``: the small models' tokenizer."""
    root = tmp_path_factory.mktemp("models")
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    templates = {"chatml": TOOLS, "plain": PLAIN, "dated": DATED, "thinking": THINKING}
    made = {
        name: save(root / name, byte_level(), **named, chat_template=template) for name, template in templates.items()
    }
    bos = metaspace()
    bos.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    folder = root / "metaspace"
    made["metaspace"] = save(folder, bos, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    return made | {"small": "transformer"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows to a file of JSON Lines."""

    def to_file(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return to_file
