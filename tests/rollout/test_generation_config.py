"""A model folder's own advice on sampling (``generation_config.json``) changes nothing of what is drawn (trap 26)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.open import open_backbone, small_backbone
from accord.rollout.generate import Decoding, generate
from accord.types import Generation

ADVICE = {"do_sample": True, "temperature": 0.01, "top_k": 1, "repetition_penalty": 9.0, "suppress_tokens": [3, 4, 5]}
PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12)]


def drawn(backbone: Backbone) -> Generation:
    backbone.eval()
    decoding = Decoding(8, eos_id=1, pad_id=0)
    return generate(backbone, PROMPTS, decoding, torch.Generator().manual_seed(0), samples=8)[0]


def write(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "gpt2":  # behind transformers' own class, which reads the advice
        transformers = pytest.importorskip("transformers")
        ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        sizes = {"vocab_size": 20, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends)).save_pretrained(folder)
    else:
        small_backbone(kind, 32, 1, 20, 1, 0).save(str(folder))


@pytest.mark.parametrize("kind", ["transformer", "mamba", "gpt2"])
def test_it_is_not_read(kind: str, tmp_path: Path) -> None:
    write(tmp_path, kind)
    plain = drawn(open_backbone(tmp_path))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": 0, **ADVICE}))
    advised = drawn(open_backbone(tmp_path))
    assert advised.replies() == plain.replies()
    assert torch.equal(advised.logprobs, plain.logprobs)
    assert {3, 4, 5} <= {token for reply in plain.replies() for token in reply}  # what the advice would suppress
    assert len({tuple(r) for r in plain.replies()[:8]}) > 4  # and top_k 1 would make alike
