"""The SFT loss and its gradients, packed and after a shared beginning, against transformers one text at a time.

Logits, saved folders and plain gradients stand in tests/models; here it is the loss that is trained, with its labels.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample
from accord.models.backbone import Backbone
from accord.models.mamba import Mamba
from accord.models.open import open_backbone
from accord.models.transformer import Transformer, unfuse
from accord.training.cross_entropy import cross_entropy

pytestmark = pytest.mark.oracle

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
CASES = {
    "llama": ("LlamaConfig", {**SMALL, **HEADS}),
    "qwen3": ("Qwen3Config", {**SMALL, **HEADS, "head_dim": 16, "tie_word_embeddings": True}),
    "mamba": ("MambaConfig", {**SMALL, "state_size": 4}),
}


def examples() -> list[SupervisedExample]:
    """Lengths that differ, a beginning of 9 tokens that all share, labels in two runs, one label alone."""
    draw = torch.Generator().manual_seed(1)
    shared = torch.randint(3, VOCAB, (9,), generator=draw).tolist()
    made = []
    for prompt, reply in ((4, 7), (11, 1), (2, 19), (1, 3)):
        rest = torch.randint(3, VOCAB, (prompt + reply,), generator=draw).tolist()
        made.append(SupervisedExample((*shared, *rest), (False,) * (9 + prompt) + (True,) * reply))
    two_turns = tuple(i in (12, 13, 17, 18, 19) for i in range(20))
    return [*made, SupervisedExample((*shared, *made[0].tokens[9:])[:20], two_turns)]


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Backbone, torch.nn.Module]:
    """The same random weights, large enough that no layer is near the identity, in both libraries."""
    import transformers

    kind, sizes = CASES[request.param]
    torch.manual_seed(2)
    peer = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes))
    with torch.no_grad():
        for weight in peer.parameters():
            weight += 0.15 * torch.randn_like(weight)
    peer.save_pretrained(tmp_path)
    return open_backbone(tmp_path), peer


def gradients(model: Backbone) -> dict[str, torch.Tensor]:
    """By the names that transformers gives them."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if isinstance(model, Transformer):
        return unfuse(model.config, grads)
    return {name if name.startswith("lm_head.") else f"backbone.{name}": grad for name, grad in grads.items()}


def test_the_sft_loss_and_its_gradients_are_those_of_transformers(pair: tuple[Backbone, torch.nn.Module]) -> None:
    ours, peer = pair
    rows = examples()
    packed = pack_supervised(rows)
    assert len(packed) == sum(map(len, rows)) - 4 * 9  # the opening was read once
    found = cross_entropy(ours, packed).loss
    (found.total / found.count).backward()

    labels = sum(sum(row.loss_mask) for row in rows)
    wanted = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.tokens])
        masked = torch.where(torch.tensor([row.loss_mask]), ids, -100)
        wanted = wanted + peer(ids, labels=masked).loss * sum(row.loss_mask) / labels
    wanted.backward()

    assert found.count == labels
    torch.testing.assert_close(found.total / found.count, wanted, rtol=1e-5, atol=0)
    mine = gradients(ours)
    assert isinstance(ours, Transformer | Mamba)
    assert mine.keys() == dict(peer.named_parameters()).keys()
    for name, weight in peer.named_parameters():
        assert weight.grad.norm() > 1e-4, name
        error = (mine[name] - weight.grad).norm() / weight.grad.norm()
        assert error < 1e-4, (name, float(error))
