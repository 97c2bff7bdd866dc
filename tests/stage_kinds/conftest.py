"""The models of the tests of fusion, and a model whose replies end."""

from pathlib import Path
from typing import Any

import pytest

from accord.models.open import open_backbone
from tests.fusion.conftest import pairs, save

__all__ = ["pairs", "save"]


@pytest.fixture
def talker(world: Any, tokenizer: Any, tmp_path: Path) -> str:
    """A model whose replies end: its end token is likelier than any letter."""
    import torch

    backbone = open_backbone(world.mamba)
    folder = tmp_path / "talker"
    folder.mkdir()
    with torch.no_grad():
        for name, p in backbone.named_parameters():
            if name == "embeddings.weight":
                p.mul_(2)
                p[tokenizer.eos_id] = p[5:31].mean(0) * 8  # near to all letters
    backbone.save(str(folder))
    tokenizer.save(folder)
    return str(folder)
