"""Chunks cut a rollout's prompts without gaps, and joined they are the rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from accord.data.prompts import load_prompts
from accord.data.tokenizer import Tokenizer
from accord.models.backbone import Backbone
from accord.models.reference import FrozenReference
from accord.rollout.chunks import ChunkedTextSource, Chunks, join, token_versions
from accord.rollout.collect import TextTask
from accord.rollout.generate import Decoding
from accord.rollout.score import FunctionReward
from accord.rollout.text_source import TextSource
from accord.runtime.run import Run
from accord.types import Generation


def lengths(prompts: list[str], replies: list[str]) -> list[float]:
    return [float(len(reply)) for reply in replies]


@pytest.fixture
def source(
    world: Any, tokenizer: Tokenizer, make_tiny: Callable[..., Backbone], new_run: Callable[..., Run]
) -> TextSource:
    prompts = load_prompts(world.prompts, tokenizer, 40)
    decoding = Decoding(8, tokenizer.eos_id, tokenizer.pad_id)
    reference = FrozenReference(make_tiny("transformer"))
    task = TextTask(prompts, tokenizer, decoding, 2, FunctionReward("length", lengths), reference, 3)
    return TextSource(new_run(), task, lambda: make_tiny("transformer", 1), 6, torch.device("cpu"))


def test_the_chunks_of_a_rollout_are_its_prompts_and_keys_in_their_order(source: TextSource) -> None:
    chunks = Chunks(source, 2)
    assert chunks.per_rollout == 3
    for iteration in (1, 0, 4):
        parts = [chunks[3 * iteration + part] for part in range(3)]
        assert [row for part in parts for row in part.rows] == source.prompt_rows(iteration)
        assert len({key for part in parts for key in part.keys}) == 12
    assert Chunks(source, 6)[4].keys == sum((chunks[12 + part].keys for part in range(3)), ())


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_chunks_joined_are_the_rollout_that_is_sampled_at_once(source: TextSource, size: int) -> None:
    whole, parts = source.collect(2), ChunkedTextSource(source, Chunks(source, size)).collect(2)
    assert parts.generation.prompts == whole.generation.prompts
    for name in ("responses", "mask", "ended"):
        assert torch.equal(getattr(parts.generation, name), getattr(whole.generation, name)), name
    assert torch.equal(parts.prompt_rows, whole.prompt_rows)
    assert torch.equal(parts.weight_versions[whole.generation.mask], whole.weight_versions[whole.generation.mask])
    torch.testing.assert_close(parts.generation.logprobs, whole.generation.logprobs)
    torch.testing.assert_close(parts.ref_logprobs, whole.ref_logprobs)
    assert torch.equal(parts.scores, whole.scores)
    assert torch.equal(parts.terms["length"], whole.terms["length"])


def test_a_shorter_part_is_padded(source: TextSource) -> None:
    long = ChunkedTextSource(source, Chunks(source, 6)).collect(0)
    whole, cut = (
        long.generation,
        [x[:, :3] for x in (long.generation.responses, long.generation.mask, long.generation.logprobs)],
    )
    generation = Generation(whole.prompts, *cut, whole.ended)
    versions, ref_logprobs = long.weight_versions[:, :3], long.ref_logprobs[:, :3]
    short = replace(long, generation=generation, weight_versions=versions, ref_logprobs=ref_logprobs)
    joined = join([short, long], source.task.decoding.pad_id)
    assert joined.generation.responses[:12, 3:].unique().tolist() == [source.task.decoding.pad_id]
    assert not joined.generation.mask[:12, 3:].any()
    assert torch.equal(joined.generation.responses[12:], whole.responses)


def test_tokens_have_the_version_of_the_weights_that_were_taken_over_before_them(source: TextSource) -> None:
    generation = source.collect(0).generation
    steps = generation.mask.shape[1]
    assert steps >= 5
    assert token_versions(generation, 3, [(2, 4), (4, 6)])[0].tolist() == [3, 3, 4, 4, *[6] * (steps - 4)]
