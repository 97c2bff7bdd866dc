"""Base and SFT: which tokens are learned, over what the loss is divided, and what the stages leave behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.algorithms.base import read_texts
from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample, load_supervised
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.backbone import Backbone
from accord.models.open import open_backbone
from accord.training.cross_entropy import cross_entropy, labels
from accord.types import Packed


def naive(backbone: Backbone, example: SupervisedExample) -> tuple[float, int]:
    """−Σ log p of the labels of one text, each predicted from the token before it (trap 5)."""
    logits = backbone.logits(backbone(Packed.of([example.tokens]))).detach()
    total, count = 0.0, 0
    for t in range(1, len(example.tokens)):
        if example.loss_mask[t]:
            total -= float(logits[t - 1].log_softmax(-1)[example.tokens[t]])
            count += 1
    return total, count


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_the_loss_is_that_of_each_text_alone(
    world: Any, tokenizer: Tokenizer, make_tiny: Callable[..., Backbone], family: str
) -> None:
    backbone = make_tiny(family)
    examples = load_supervised(world.sft, tokenizer, 64).examples
    alone = [naive(backbone, e) for e in examples]
    output = cross_entropy(backbone, pack_supervised(examples))
    assert int(output.loss.count) == sum(n for _, n in alone)
    assert float(output.loss.total.detach()) == pytest.approx(sum(x for x, _ in alone), rel=1e-5)
    assert output.metrics["nll"].value() == pytest.approx(output.loss.value())


def test_only_the_reply_and_its_end_are_learned(world: Any, tokenizer: Tokenizer) -> None:
    examples = load_supervised(world.sft, tokenizer, 64).examples
    packed = pack_supervised(examples)
    learned = tokenizer.decode(packed.tokens[labels(packed)].tolist(), skip_special=False)
    replies = ["fire is.", "the sea is.", "a rose is.", "tom", "rex is one", "four.", "hello!", "the sky."]
    assert learned == "".join(f"{reply}<eos>" for reply in replies)


def test_a_first_token_is_never_predicted() -> None:
    """A segment's first token has a predecessor only where the segment continues another."""
    packed = Packed.of([[5, 6], [7, 8], [9]], [-1, 0, -1], [[True, True], [True, True], [True]])
    assert labels(packed).tolist() == [1, 2, 3]


# ------------------------------------------------------------------------------------- base's reader
def test_base_learns_every_token_but_the_first(world: Any, tokenizer: Tokenizer) -> None:
    examples = read_texts(world.base, tokenizer, 64)
    assert len(examples) == 9
    text = [tokenizer.decode(e.tokens, skip_special=False) for e in examples]
    assert text[0] == "fire is. no.<eos>"
    assert text[-1] == "<user>hi<assistant>hello.<eos>"
    assert all(e.loss_mask == (False, *[True] * (len(e.tokens) - 1)) for e in examples)
    assert max(len(e.tokens) for e in read_texts(world.base, tokenizer, 7)) == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [('{"txt": "a"}', r"rows\.jsonl, row 2: no 'text'"), ('{"text": 5}', r"row 2: 'text' is a JSON number")],
)
def test_a_row_without_text_is_named(tmp_path: Path, tokenizer: Tokenizer, row: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n' + row + "\n")
    with pytest.raises(UserError, match=message):
        read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64)


def test_empty_texts_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n{"text": "ab"}\n')
    assert [len(e.tokens) for e in read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64)] == [3]
    (tmp_path / "rows.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no row is usable"):
        read_texts(str(tmp_path / "rows.jsonl"), tokenizer, 64)


# ------------------------------------------------------------------------------------- stages
def test_base_leaves_a_model_that_opens(stage: Any, world: Any, tmp_path: Path, lines: Any) -> None:
    model = {"base_model": "transformer", "d_model": 32, "n_layers": 2, "max_length": 48}
    outcome = stage("base", {"model": model, "data": {"train": world.base}, "training": {"batch_size": 4}})
    opened = open_backbone(tmp_path / "out" / "base" / "model")
    state = torch.load(tmp_path / "out" / "base" / "base_final.pt", weights_only=True)
    for name, value in opened.state_dict().items():
        assert torch.equal(value, state["model_state_dict"][name])
    assert state["metrics"] == outcome.done["metrics"]
    rows = lines("base")
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert rows[0]["nll"] == pytest.approx(3.9, abs=0.2)  # ln 50 for a model that knows nothing
    assert not (tmp_path / "out" / "base" / "state.pt").exists()


def test_sft_leaves_a_checkpoint_an_epoch(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]]
) -> None:
    training = {"num_epochs": 2, "learning_rate": 0.01, "batch_size": 4}
    stage("sft", {"model": {"base_model": world.mamba}, "data": {"train": world.sft}, "training": training})
    out = tmp_path / "out" / "sft"
    assert sorted(p.name for p in out.glob("*.pt")) == ["sft_epoch_0.pt", "sft_epoch_1.pt", "sft_final.pt"]
    first, second, final = (weights_of(out / f"sft_{name}.pt") for name in ("epoch_0", "epoch_1", "final"))
    assert any(not torch.equal(first[k], second[k]) for k in first)
    assert all(torch.equal(second[k], final[k]) for k in final)
    assert torch.load(out / "sft_epoch_1.pt", weights_only=True)["epoch"] == 1
    # one epoch of the same run is the first of two: the schedule is constant, so nothing else differs
    values = {"model": {"base_model": world.mamba}, "data": {"train": world.sft}}
    stage("sft", {**values, "training": {**training, "num_epochs": 1}}, "one")
    one = weights_of(tmp_path / "out" / "one" / "sft_final.pt")
    assert all(torch.equal(one[k], first[k]) for k in one)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_of_texts_change_nothing(
    stage: Any, world: Any, tmp_path: Path, weights_of: Callable[[Path], dict[str, Tensor]], micro: int
) -> None:
    """Trap 43 on packed rows of different lengths."""
    for name, size in (("whole", 0), ("cut", micro)):
        training = {"batch_size": 8, "micro_batch_size": size, "num_epochs": 2, "adam_eps": 1e-3}
        values = {"model": {"base_model": world.transformer}, "data": {"train": world.sft}, "training": training}
        stage("sft", values, name)
    whole, cut = (weights_of(tmp_path / "out" / n / "sft_final.pt") for n in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=1e-6)


def test_a_limit_reads_the_first_rows(stage: Any, world: Any) -> None:
    data = {"train": world.sft, "limit": 3}
    values = {"model": {"base_model": world.mamba}, "data": data, "training": {"batch_size": 1}}
    assert stage("sft", values).done["metrics"]["loss"] > 0
