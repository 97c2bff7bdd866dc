"""The loss of base and SFT: which tokens are learned, and over what the loss is divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accord.data.packing import pack_supervised
from accord.data.supervised import SupervisedExample, load_supervised
from accord.data.tokenizer import Tokenizer
from accord.models.backbone import Backbone
from accord.training.cross_entropy import cross_entropy, labels
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
