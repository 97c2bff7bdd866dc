"""Sampling noise: keyed by (seed, purpose, iteration, prompt, sample, position), whatever is sampled beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.rollout.generate import Decoding, generate
from accord.rollout.noise import reply_keys, splitmix64, uniforms

PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9), (3, 1), (2, 2, 2), (10, 11, 12, 13), (7,), (9, 14)]
SAMPLES = 3


def test_the_stream_is_that_of_the_published_generator() -> None:
    """The first numbers of SplitMix64 with seed 1234567, as reference implementations print them."""
    assert splitmix64([1234567], 5)[0].tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_every_counter_changes_the_key() -> None:
    base = reply_keys(0, "a", 0, [0])
    others = [
        reply_keys(1, "a", 0, [0]),
        reply_keys(0, "b", 0, [0]),
        reply_keys(0, "a", 1, [0]),
        reply_keys(0, "a", 0, [1]),
    ]
    assert len({base[0], *(key for (key,) in others), reply_keys(0, "a", 0, [0], 2)[1]}) == 6


def test_a_prompt_that_occurs_again_continues_its_samples() -> None:
    assert reply_keys(0, "a", 0, [5, 2, 5], 2) == [
        *reply_keys(0, "a", 0, [5], 2),
        *reply_keys(0, "a", 0, [2], 2),
        *reply_keys(0, "a", 0, [5], 4)[2:],
    ]


def test_numbers_are_uniform_and_uncorrelated() -> None:
    keys = reply_keys(3, "sampling", 0, range(500), 4)
    numbers = uniforms(keys, 50).double()
    assert numbers.dtype == torch.float64
    assert uniforms(keys, 50).dtype == torch.float32
    assert 0 <= float(numbers.min()) < 1e-4
    assert 1 - 1e-4 < float(numbers.max()) < 1
    counts = torch.histc(numbers.flatten(), 100, 0, 1)
    assert ((counts - 1000).square() / 1000).sum() < 99 + 5 * math.sqrt(198)  # chi-square with 99 degrees of freedom
    centered = (numbers - 0.5) * math.sqrt(12)
    for neighbor in (centered[:, 1:] * centered[:, :-1], centered[1:] * centered[:-1]):
        assert abs(float(neighbor.mean())) * math.sqrt(neighbor.numel()) < 5  # next position, next sample
    assert torch.equal(uniforms(keys, 20), uniforms(keys, 50)[:, :20])  # a longer budget changes no earlier token


def model(family: str) -> Backbone:
    torch.manual_seed(3)
    backbone = small_backbone(family, 32, 2, 23, 1, 0).double().eval()
    with torch.no_grad():  # a fresh model is nearly uniform; this one has preferences that depend on the text
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                parameter.mul_(3 if family == "mamba" else 8)
    return backbone


def replies(backbone: Backbone, rows: Sequence[int]) -> dict[int, list[list[int]]]:
    """The replies to prompts ``rows``, sampled together."""
    keys = reply_keys(0, "sampling", 4, rows, SAMPLES)
    generation, _ = generate(backbone, [PROMPTS[r] for r in rows], Decoding(16, 1, 0), keys, SAMPLES)
    found = generation.reply_tokens()
    return {row: found[i * SAMPLES : (i + 1) * SAMPLES] for i, row in enumerate(rows)}


@pytest.mark.parametrize("family", ["mamba", "transformer"])
def test_a_reply_is_the_same_alone_and_in_any_batch(family: str) -> None:
    backbone = model(family)
    together = replies(backbone, range(8))
    assert replies(backbone, [6, 1, 7, 0, 5, 2, 4, 3]) == together  # in another order
    parts = [replies(backbone, rows) for rows in ([0, 3, 5], [7], [2, 1], [6, 4])]  # on four workers
    assert {row: found for part in parts for row, found in part.items()} == together
    for row, expected in together.items():
        assert len({tuple(reply) for reply in expected}) > 1
        for sample, key in enumerate(reply_keys(0, "sampling", 4, [row], SAMPLES)):
            alone, _ = generate(backbone, [PROMPTS[row]], Decoding(16, 1, 0), [key])
            assert alone.reply_tokens() == [expected[sample]]


def test_each_reply_needs_a_key() -> None:
    with pytest.raises(ValueError, match="2 keys for 4 replies"):
        generate(model("mamba"), PROMPTS[:2], Decoding(4, 1, 0), [1, 2], 2)
