"""Tiny model folders as people have them: a byte-level tokenizer with chat markers, beside random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from accord.data.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IDS = 259
"""256 bytes, <|endoftext|>, <|im_start|> and <|im_end|>."""
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": IDS,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def chat_tokenizer() -> Tokenizer:
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, CHATML)


def new_model(family: str, seed: int = 0, **settings: Any) -> Any:
    """A model of transformers with random weights large enough that its logits differ."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.CONFIG_MAPPING[family](**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (weight.ndim == 2 and "A_log" not in name) or (name.endswith("bias") and "dt" not in name):
                weight.normal_(std=0.3)
    return model.eval()


def llama(seed: int = 0, **settings: Any) -> Any:
    return new_model("llama", seed, **{**LLAMA, **settings})


def save(model: Any, folder: Path) -> str:
    """The folder, with model and tokenizer."""
    model.save_pretrained(folder)
    chat_tokenizer().save(folder)
    return str(folder)


def texts(*lengths: int, ids: int = IDS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, ids, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def own_logits(model: Any, some: list[list[int]]) -> Tensor:
    """(L, V): what transformers gives each text alone."""
    return torch.cat([model(input_ids=torch.tensor([text])).logits[0] for text in some])
