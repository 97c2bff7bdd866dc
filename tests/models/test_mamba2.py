"""Mamba-2, which comes through transformers: padding behind a text and other texts beside it reach no state (trap 3)."""

from __future__ import annotations

import pytest
import torch

from accord.models.hf import CausalLM
from accord.types import Packed

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8, "chunk_size": 8}
    heads = {"num_heads": 4, "head_dim": 8, "n_groups": 1}  # of expand * hidden_size = 32
    torch.manual_seed(0)
    peer = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **heads))
    with torch.no_grad():
        for weight in peer.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.3)
    return CausalLM(peer)


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 31, (n,), generator=generator).tolist() for n in (11, 2, 7, 1)]


@torch.no_grad()
def test_packed_is_alone(model: CausalLM) -> None:
    found = model.logits(model(Packed.of(texts())))
    wanted = torch.cat([model.model(input_ids=torch.tensor([text])).logits[0] for text in texts()])
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_steps_are_the_whole_text(model: CausalLM) -> None:
    """Rows of different lengths, written side by side."""
    hidden, cache = model.prefill(Packed.of(texts()), 3)
    grown = texts()
    for new in ([4, 5, 6, 7], [8, 9, 10, 11]):
        for row, text in enumerate(grown):
            torch.testing.assert_close(hidden[row], model(Packed.of([text]))[-1], rtol=1e-5, atol=1e-5)
        hidden = model.step(torch.tensor(new), cache)
        grown = [[*text, token] for text, token in zip(grown, new, strict=True)]
