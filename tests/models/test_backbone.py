"""What every family offers: a call that runs hooks, the hidden states asked for, parameters that require gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.training.artifact import open_model
from accord.types import Packed

PACKED = Packed.of([[5, 6, 7], [8, 9], [3, 4, 5, 6]], [-1, 0, 0])
FAMILIES = ["mamba", "transformer", "hf"]


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    if request.param == "hf":
        transformers = pytest.importorskip("transformers")
        from accord.models.hf import CausalLM

        config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        return CausalLM(transformers.GPT2LMHeadModel(config))
    return small_backbone(request.param, 32, 2, 50, 1, 0)


def test_indices_select_among_all_hidden_states(backbone: Backbone) -> None:
    at = torch.tensor([8, 0, 3, 3])
    whole = backbone(PACKED)
    assert whole.shape == (9, backbone.width)
    torch.testing.assert_close(backbone(PACKED, at), whole[at])


def test_a_call_runs_the_hooks_of_the_model(backbone: Backbone) -> None:
    order: list[str] = []
    backbone.register_forward_pre_hook(lambda *_: order.append("before"))
    backbone.register_forward_hook(lambda *_: order.append("after"))
    backbone(PACKED)
    assert order == ["before", "after"]


def test_a_head_of_one_matrix_gives_the_logits(backbone: Backbone) -> None:
    hidden = torch.randn(4, backbone.width)
    if (weight := backbone.head_weight()) is not None:
        torch.testing.assert_close(backbone.logits(hidden), hidden @ weight.T)


def test_a_backbone_without_its_methods_cannot_be_made() -> None:
    class Empty(Backbone):
        pass

    with pytest.raises(TypeError, match=r"abstract.*forward"):
        Empty()


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_an_opened_model_requires_gradients(family: str, tmp_path: Path) -> None:
    small_backbone(family, 32, 2, 50, 1, 0).requires_grad_(False).save(str(tmp_path))
    opened = open_model(str(tmp_path), torch.device("cpu"))
    assert all(weight.requires_grad for weight in opened.parameters())
    assert not opened.training


def test_opening_leaves_frozen_what_the_family_froze(monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.training import artifact

    frozen = small_backbone("mamba", 32, 1, 50, 1, 0)
    frozen.embeddings.weight.requires_grad_(False)  # type: ignore[attr-defined]
    opening: Callable[[str], Backbone] = lambda _: frozen  # noqa: E731
    monkeypatch.setattr(artifact, "open_backbone", opening)
    fixed: list[Tensor] = [w for w in open_model("", torch.device("cpu")).parameters() if not w.requires_grad]
    assert len(fixed) == 1
