"""The loss of base and SFT: which tokens are learned, and over what the loss is divided."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample, load_supervised
from accord.data.tokenizer import Tokenizer
from accord.models.backbone import Backbone
from accord.models.open import open_backbone
from accord.training.cross_entropy import cross_entropy, labels, mean_cross_entropy
from accord.types import Packed


def naive(backbone: Backbone, example: SupervisedExample) -> tuple[float, int]:
    """−Σ log p of the labels of one text, each predicted from the token before it."""
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


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_the_held_out_loss_is_the_mean_over_all_labels_whatever_shares_a_pass(
    world: Any, tokenizer: Tokenizer, make_tiny: Callable[..., Backbone], family: str
) -> None:
    backbone = make_tiny(family)
    examples = load_supervised(world.sft, tokenizer, 64).examples
    alone = [naive(backbone, e) for e in examples]
    count = sum(n for _, n in alone)
    expected = sum(x for x, _ in alone) / count
    assert expected != pytest.approx(sum(x / n for x, n in alone) / len(alone), rel=1e-5)  # no mean of means
    for rows in (examples, examples[::-1]):
        for size in (1, 3, len(examples), 100):
            loss, labels_ = mean_cross_entropy(backbone, rows, "float32", size)
            assert labels_ == count
            assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.oracle
def test_the_held_out_loss_is_that_of_transformers(world: Any, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(world.transformer).eval()
    examples = load_supervised(world.sft, tokenizer, 64).examples
    total = 0.0
    for example in examples:
        tokens = torch.tensor([example.tokens])
        masked = torch.where(torch.tensor([example.loss_mask]), tokens, -100)
        with torch.no_grad():
            total += float(model(tokens, labels=masked).loss) * sum(example.loss_mask)
    loss, count = mean_cross_entropy(open_backbone(world.transformer).eval(), examples, "float32", 3)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_measuring_draws_no_random_number_and_builds_no_graph(
    world: Any, tokenizer: Tokenizer, make_tiny: Callable[..., Backbone]
) -> None:
    backbone = make_tiny("mamba")
    examples = load_supervised(world.sft, tokenizer, 64).examples
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state, others, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    with_graph: list[bool] = []
    backbone.register_forward_hook(lambda *_: with_graph.append(torch.is_grad_enabled()))
    mean_cross_entropy(backbone, examples, "float32", 4)
    assert with_graph == [False, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], others[1])  # type: ignore[index]
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
