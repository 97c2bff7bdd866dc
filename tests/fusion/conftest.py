"""Small models of one base, in folders of the test's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accord.data.tokenizer import small_tokenizer
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.models.reward import RewardMLP, RewardModel, ScalarHead

WIDTH = 32


def tiny(family: str = "transformer", seed: int = 0, layers: int = 2, width: int = WIDTH) -> Backbone:
    """A base (seed 0), and models near it (other seeds)."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    made = small_backbone(family, width, layers, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)
    torch.manual_seed(seed)
    if seed:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    made.eval()
    return made


def scalar_head(seed: int) -> ScalarHead:
    torch.manual_seed(100 + seed)
    head = ScalarHead(WIDTH)
    head.measure(torch.randn(64, WIDTH) * (1 + torch.rand(WIDTH)) + seed)
    nn.init.normal_(head.linear.bias)
    return head


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """``save(name, seed=1, …)`` writes a language model, with ``head`` a reward model; returns its folder."""

    def write(name: str, head: str = "", family: str = "transformer", **how: Any) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        backbone = tiny(family, **how)
        if head:
            seed = how.get("seed", 0)
            torch.manual_seed(200 + seed)
            layers: Any = scalar_head(seed) if head == "scalar" else RewardMLP(WIDTH, 8, 2)
            model = RewardModel(backbone, layers, "mean")
            model.mean.fill_(0.3 * seed)
            model.deviation.fill_(1.0 + 0.5 * seed)
            model.save(str(folder))
        else:
            backbone.save(str(folder))
        small_tokenizer().save(folder)
        return str(folder)

    return write


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"what is {i}?", "chosen": f"it is {i}, i think.", "rejected": "no" * (i + 1)} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
