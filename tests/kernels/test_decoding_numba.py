"""Compiled decoding against the plain steps: the same states, the same tokens, the log-probs of the trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.kernels import decoding as fast
from accord.models.language import reply_logprobs
from accord.models.transformer import Transformer
from accord.models.transformer_config import TransformerConfig
from accord.rollout import generate as writing
from accord.rollout.collect import pack_texts
from accord.rollout.generate import Decoding, draw, draw_compiled, generate
from accord.rollout.noise import reply_keys
from accord.types import Packed

VOCAB = 97
PROMPTS = [(1, 2, 3), (4,), tuple(range(5, 40)), (9, 8, 7, 6), (3, 1), (2,) * 17, (10, 11), (12, 13, 14), (20, 3, 5)]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "tied": False},
    "window": {"family": "qwen2", "sliding_window": 6, "first_window_layer": 1},
}


def model(kind: str = "llama") -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(VOCAB, 64, 2, 6, 2, 32, 96, **KINDS[kind]))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run compiled kernels on small work, too."""
    monkeypatch.setattr(fast, "MIN_WORK_FOR_JIT", 0)
    monkeypatch.setattr(writing, "MIN_WORK_FOR_JIT", 0)


@torch.no_grad()
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_are_the_whole_pass_with_rows_repeated_dropped_and_reordered(kind: str) -> None:
    ours, generator = model(kind), seeded(1)
    texts = [list(p) for p in PROMPTS]
    _, cache = ours.prefill(Packed.of(texts), 30)
    for rows in ([*range(9)], [8, 0, 2, 2, 5], [4, 1]):
        cache, texts = cache.select(torch.tensor(rows)), [list(texts[r]) for r in rows]
        for _ in range(7):
            tokens = torch.randint(VOCAB, (len(rows),), generator=generator)
            states = ours.step(tokens, cache)
            assert cache.compiled
            for text, token in zip(texts, tokens.tolist(), strict=True):
                text.append(token)
            whole = torch.stack([ours.forward_plain(Packed.of([text]))[-1] for text in texts])
            torch.testing.assert_close(states, whole, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("threads", [1, 2])
def test_returned_states_are_not_overwritten_and_threads_change_nothing(threads: int) -> None:
    ours, before = model(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _, cache = ours.prefill(Packed.of(PROMPTS), 5)
        first = ours.step(torch.arange(9), cache)
        kept = first.clone()
        ours.step(torch.arange(9) + 3, cache)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, kept)


def keys(samples: int, seed: int) -> list[int]:
    return reply_keys(seed, "the test", 0, range(len(PROMPTS)), samples)


def both_ways(monkeypatch: pytest.MonkeyPatch, decoding: Decoding, samples: int, seed: int) -> list[Any]:
    found = []
    for worth in (0, 2**60):
        monkeypatch.setattr(fast, "MIN_WORK_FOR_JIT", worth)
        monkeypatch.setattr(writing, "MIN_WORK_FOR_JIT", worth)
        found.append(
            generate(
                model(), PROMPTS, decoding, reply_keys(seed, "the test", 0, range(len(PROMPTS)), samples), samples
            )[0]
        )
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_replies_are_those_of_the_plain_steps(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, plain = both_ways(monkeypatch, Decoding(20, 1, 0, temperature), 3, 5)
    assert torch.equal(compiled.responses, plain.responses)
    assert torch.equal(compiled.mask, plain.mask)
    torch.testing.assert_close(compiled.logprobs, plain.logprobs, rtol=0, atol=1e-5)
    if temperature:
        assert compiled.mask.sum() < compiled.mask.numel(), "no row left early"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", KINDS)
def test_sampled_logprobs_are_the_trainers(kind: str) -> None:
    ours = model(kind)
    generation, _ = generate(
        ours, PROMPTS, Decoding(24, 1, 0, 0.8), reply_keys(2, "the test", 0, range(len(PROMPTS)), 4), samples=4
    )
    packed, chosen = pack_texts(generation.prompts, generation.responses, generation.mask)
    with torch.no_grad():
        known = reply_logprobs(ours, packed, chosen, 0.8)
    torch.testing.assert_close(generation.logprobs[generation.mask], known, rtol=0, atol=1e-5)


def test_what_the_kernels_do_not_support_takes_the_plain_steps() -> None:
    embedding, sizes = torch.zeros(VOCAB, 64), fast.Sizes(2, 64, 6, 2, 32, 96)
    assert fast.runs_compiled(embedding, sizes, 32, 64)
    assert not fast.runs_compiled(embedding, sizes, 32, 63)  # 32 x 63 x 2 layers: too little to load a compiler for
    assert not fast.runs_compiled(embedding, sizes, 1, 10**6)
    assert not fast.runs_compiled(embedding.bfloat16(), sizes, 32, 64)
    assert not fast.runs_compiled(embedding, replace(sizes, head_dim=24), 32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fast.runs_compiled(embedding, sizes, 32, 64)


# ------------------------------------------------------------------------------------- the draw
def rows_of(vocabulary: int) -> Tensor:
    logits = 4 * torch.randn(300, vocabulary, generator=seeded(3))
    logits[torch.rand(300, vocabulary, generator=seeded(4)) < 0.3] = -math.inf
    logits[:, vocabulary // 2] = 0.5
    return logits


@pytest.mark.parametrize("vocabulary", [1, 5, 16, 255, 256, 257, 5000])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_a_draw_falls_where_the_plain_one_does(vocabulary: int, temperature: float) -> None:
    logits, decoding = rows_of(vocabulary), Decoding(1, 0, 0, temperature)
    uniform = torch.rand(len(logits), generator=seeded())
    plain, compiled = draw(logits, decoding, uniform), draw_compiled(logits, decoding, uniform)
    apart = plain[0] != compiled[0]
    assert apart.sum() <= 1  # where rounding moves a bound across the uniform number
    exact = (logits.double() / (temperature or 1.0)).log_softmax(-1).gather(1, compiled[0][:, None]).squeeze(1)
    torch.testing.assert_close(compiled[1].double(), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("vocabulary", [8, 300, 1000])
def test_the_ends_of_the_unit_interval_fall_on_possible_tokens(uniform: float, vocabulary: int) -> None:
    logits = torch.full((1, vocabulary), -math.inf)
    logits[0, [2, 5, vocabulary - 2]] = torch.tensor([1.0, 0.0, 0.5])
    tokens, logprobs = draw_compiled(logits, Decoding(1, 0, 0), torch.tensor([uniform]))
    assert int(tokens) == (2 if uniform == 0 else vocabulary - 2)
    assert logprobs.isfinite().all()


def test_a_nan_logit_shows_in_the_logprob() -> None:
    logits = torch.zeros(2, 40)
    logits[1, 7] = math.nan
    logprobs = draw_compiled(logits, Decoding(1, 0, 0), torch.tensor([0.5, 0.5]))[1]
    assert logprobs[0] == pytest.approx(-math.log(40), rel=1e-6)
    assert logprobs[1].isnan()
