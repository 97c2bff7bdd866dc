"""Sampling: what is drawn, what is recorded, and that the trainer's pass over the same replies agrees."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.open import open_backbone, small_backbone
from accord.rollout.collect import pack_texts, to_rows
from accord.rollout.generate import Decoding, draw, generate, stream
from accord.rollout.noise import reply_keys
from accord.types import Generation, Packed

VOCAB, PAD = 23, 0
PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9), (3, 1), (2, 2, 2), (10, 11, 12, 13), (7,), (9, 14), (20, 3), (17, 16, 15)]
FAMILIES = ("mamba", "transformer")


def tiny(family: str) -> Backbone:
    torch.manual_seed(3)
    backbone = small_backbone(family, 32, 2, VOCAB, 1, PAD)
    with torch.no_grad():  # a fresh model repeats one token for ever; a wild one writes
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                parameter.mul_(3 if family == "mamba" else 8)
    backbone.eval()
    return backbone


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keys(prompts: int = len(PROMPTS), samples: int = 1, seed: int = 0) -> list[int]:
    return reply_keys(seed, "the test", 0, range(prompts), samples)


def uniform(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, generator=seeded(seed))


@torch.no_grad()
def naive_greedy(backbone: Backbone, prompt: Sequence[int], steps: int, eos: int = -1) -> list[int]:
    """The whole text through the model for every token: no cache, no batch."""
    tokens = list(prompt)
    for _ in range(steps):
        hidden = backbone(Packed.of([tokens]))[-1:]
        tokens.append(int(backbone.logits(hidden)[0].argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


def leaving_eos(backbone: Backbone, steps: int) -> int:
    """A token that ends some of the greedy replies, at several different steps."""
    replies = [naive_greedy(backbone, p, steps) for p in PROMPTS]
    ends = {t: [r.index(t) for r in replies if t in r] for t in range(1, VOCAB)}
    return max(ends, key=lambda t: (len(set(ends[t])), len(ends[t]) if len(ends[t]) < len(PROMPTS) else 0))


class Spy:
    """Counts what a backbone is asked for."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.prompts: list[int] = []
        step, prefill = backbone.step, backbone.prefill

        def counted_step(tokens: Tensor, cache: Any) -> Tensor:
            self.batches.append(len(tokens))
            return step(tokens, cache)

        def counted_prefill(packed: Packed, capacity: int) -> tuple[Tensor, Any]:
            self.prompts.append(len(packed.parents))
            return prefill(packed, capacity)

        monkeypatch.setattr(backbone, "step", counted_step)
        monkeypatch.setattr(backbone, "prefill", counted_prefill)


def check_shape_of(generation: Generation, decoding: Decoding) -> None:
    """What holds for every generation: nothing after an end token is an action."""
    lengths = generation.lengths
    places = torch.arange(generation.mask.shape[1])
    assert torch.equal(generation.mask, places < lengths[:, None])  # one run of true, from the start
    assert lengths.min() >= 1
    assert lengths.max() == generation.mask.shape[1]
    assert (generation.responses[~generation.mask] == decoding.pad_id).all()
    assert (generation.logprobs[~generation.mask] == 0).all()
    assert (generation.logprobs[generation.mask] <= 0).all()
    for reply, ended, length in zip(
        generation.reply_tokens(), generation.ended.tolist(), lengths.tolist(), strict=True
    ):
        assert (reply[-1] == decoding.eos_id) is ended
        assert decoding.eos_id not in reply[:-1]
        assert ended or length == decoding.max_new_tokens


# ------------------------------------------------------------------------------------- whole replies
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_naive_loop_while_finished_rows_leave(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(family)
    eos = leaving_eos(backbone, 12)
    spy = Spy(backbone, monkeypatch)
    decoding = Decoding(12, eos, PAD, temperature=0)
    generation, _ = generate(backbone, PROMPTS, decoding, keys())
    assert generation.reply_tokens() == [naive_greedy(backbone, p, 12, eos) for p in PROMPTS]
    assert len(set(spy.batches)) > 1, "no row left: this test would show nothing"
    assert spy.batches == sorted(spy.batches, reverse=True)
    assert generation.ended.any()
    assert generation.prompts == tuple(PROMPTS)
    check_shape_of(generation, decoding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_and_values_are_those_of_the_trainer(family: str, temperature: float) -> None:
    """The ratio of the first minibatch is 1, token by token, at the sampling temperature."""
    backbone = tiny(family)
    policy = LanguageActorCritic(backbone)
    nn.init.normal_(policy.value_head.linear.weight, generator=seeded(5))
    eos = leaving_eos(backbone, 12)
    decoding = Decoding(12, eos, PAD, temperature)
    generation, values = generate(backbone, PROMPTS, decoding, keys(samples=2, seed=1), samples=2, value=policy.values)
    check_shape_of(generation, decoding)
    assert 0 < int(generation.ended.sum()) < 20
    packed, chosen = pack_texts(generation.prompts, generation.responses, generation.mask)
    with torch.no_grad():
        scores = policy.score(packed, chosen, temperature)
    mask = generation.mask
    torch.testing.assert_close(to_rows(scores.logprobs, mask), generation.logprobs, rtol=0, atol=1e-4)
    ratio = (scores.logprobs - generation.logprobs[mask]).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    torch.testing.assert_close(to_rows(scores.values, mask), values, rtol=0, atol=1e-4)
    assert values[mask].std() > 0.1
    other = policy.score(packed, chosen, 2.0 * temperature).logprobs
    assert (other - generation.logprobs[mask]).abs().max() > 0.05, "the temperature would not be seen here"


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_share_the_reading_of_their_prompt(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(family)
    spy = Spy(backbone, monkeypatch)
    decoding = Decoding(6, VOCAB + 1, PAD)
    generation, values = generate(backbone, PROMPTS[:3], decoding, keys(3, 4), samples=4)
    assert spy.prompts == [3]
    assert generation.prompts == tuple(p for p in PROMPTS[:3] for _ in range(4))
    assert len({tuple(r) for r in generation.reply_tokens()}) > 6  # samples of a prompt differ
    assert (values == 0).all()
    greedy, _ = generate(backbone, PROMPTS[:3], Decoding(6, VOCAB + 1, PAD, 0), keys(3, 2), samples=2)
    assert greedy.reply_tokens() == [naive_greedy(backbone, p, 6) for p in PROMPTS[:3] for _ in range(2)]


def test_the_keys_decide_every_draw() -> None:
    backbone = tiny("mamba")
    draws = [generate(backbone, PROMPTS, Decoding(8, 2, PAD), keys(seed=s))[0] for s in (0, 0, 1)]
    assert torch.equal(draws[0].responses, draws[1].responses)
    assert torch.equal(draws[0].logprobs, draws[1].logprobs)
    assert draws[0].reply_tokens() != draws[2].reply_tokens()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generate(backbone, PROMPTS, Decoding(8, 2, PAD), keys())
    assert torch.equal(torch.get_rng_state(), before)  # torch's own state is not touched


def test_a_reply_may_be_the_end_token_alone_or_one_token() -> None:
    backbone = tiny("transformer")
    first = naive_greedy(backbone, PROMPTS[0], 1)[0]
    generation, _ = generate(backbone, [PROMPTS[0]], Decoding(5, first, PAD, 0), keys(1))
    assert generation.responses.tolist() == [[first]]
    assert generation.ended.tolist() == [True]
    generation, _ = generate(backbone, PROMPTS, Decoding(1, first, PAD), keys())
    check_shape_of(generation, Decoding(1, first, PAD))


def test_an_eos_that_is_the_pad_token_is_still_an_action() -> None:
    """``ended`` is read under the mask: pads after a cut reply must not count as an end."""
    backbone = tiny("mamba")
    generation, _ = generate(backbone, PROMPTS * 3, Decoding(5, PAD, PAD), keys(30, seed=2))
    assert [r[-1] == PAD for r in generation.reply_tokens()] == generation.ended.tolist()
    assert 0 < int(generation.ended.sum()) < 30


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_the_reply_without_its_end(family: str) -> None:
    backbone = tiny(family)
    eos = leaving_eos(backbone, 12)
    for prompt in PROMPTS[:5]:
        decoding = Decoding(12, eos, PAD)
        alone, _ = generate(backbone, [prompt], decoding, [7])
        reply = alone.reply_tokens()[0]
        assert list(stream(backbone, prompt, decoding, 7)) == (reply[:-1] if alone.ended[0] else reply)


# ------------------------------------------------------------------------------------- one draw
LOGITS = torch.tensor([-math.inf, 2.0, 0.5, -math.inf, -1.0, 1.0, 0.0, -math.inf])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_softmax_and_never_take_what_is_impossible(temperature: float) -> None:
    n = 40_000
    tokens, logprobs = draw(LOGITS.expand(n, -1), Decoding(1, 0, 0, temperature), uniform(n, 4))
    expected = torch.softmax(LOGITS / temperature, -1)
    counts = torch.bincount(tokens, minlength=8).double()
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    chi_square = ((counts - n * expected).square() / (n * expected))[possible].sum()
    assert chi_square < 20.5  # the 0.1 % point for 4 degrees of freedom is 18.5
    torch.testing.assert_close(logprobs, expected.log()[tokens])


@pytest.mark.parametrize("at", [0.0, 1.0 - 2.0**-24])
def test_the_ends_of_the_unit_interval_fall_on_possible_tokens(at: float) -> None:
    for scale in torch.linspace(0.1, 30, 50):
        tokens, logprobs = draw((scale * LOGITS)[None], Decoding(1, 0, 0), torch.tensor([at]))
        assert int(tokens) in ({1} if at == 0 else {1, 2, 4, 5, 6})
        assert logprobs.isfinite().all()
        assert at == 0 or scale > 1 or int(tokens) == 6  # the last possible one


def test_rows_draw_independently() -> None:
    certain = torch.full((6, 6), -math.inf)
    certain.fill_diagonal_(3.0)
    tokens, logprobs = draw(certain.flip(0), Decoding(1, 0, 0), uniform(6))
    assert tokens.tolist() == [5, 4, 3, 2, 1, 0]
    assert (logprobs == 0).all()
    tokens, _ = draw(torch.zeros(200, 50), Decoding(1, 0, 0), uniform(200))
    assert len(set(tokens.tolist())) > 40  # not one number for all


def test_top_p_keeps_the_nucleus_and_says_so_in_the_logprobs() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    tokens, logprobs = draw(probabilities.log().expand(5000, -1), Decoding(1, 0, 0, top_p=0.7), uniform(5000))
    assert set(tokens.tolist()) == {1, 3}  # 0.4 + 0.3 reach 0.7
    expected = {1: math.log(4 / 7), 3: math.log(3 / 7)}
    torch.testing.assert_close(logprobs, torch.tensor([expected[int(t)] for t in tokens]))
    tokens, _ = draw(probabilities.log().expand(5000, -1), Decoding(1, 0, 0, top_p=0.71), uniform(5000))
    assert set(tokens.tolist()) == {1, 3, 4}
    tokens, _ = draw(probabilities.log().expand(50, -1), Decoding(1, 0, 0, top_p=1e-6), uniform(50))
    assert set(tokens.tolist()) == {1}  # the likeliest always stays


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(40, 9, generator=seeded())
    tokens, logprobs = draw(logits, Decoding(1, 0, 0, 0), uniform(40))
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


# ------------------------------------------------------------------------------------- generation_config.json
GENERATION_CONFIG = {
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "repetition_penalty": 9.0,
    "suppress_tokens": [3, 4, 5],
}
SHORT_PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12)]


def sample_replies(backbone: Backbone) -> Generation:
    backbone.eval()
    decoding = Decoding(8, eos_id=1, pad_id=0)
    return generate(backbone, SHORT_PROMPTS, decoding, keys(3, 8), samples=8)[0]


def save_model(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "gpt2":  # through transformers' own class, which reads the file
        transformers = pytest.importorskip("transformers")
        ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        sizes = {"vocab_size": 20, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends)).save_pretrained(folder)
    else:
        small_backbone(kind, 32, 1, 20, 1, 0).save(str(folder))


@pytest.mark.parametrize("kind", ["transformer", "mamba", "gpt2"])
def test_generation_config_is_not_read(kind: str, tmp_path: Path) -> None:
    save_model(tmp_path, kind)
    plain = sample_replies(open_backbone(tmp_path))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "pad_token_id": 0, **GENERATION_CONFIG})
    )
    with_config = sample_replies(open_backbone(tmp_path))
    assert with_config.reply_tokens() == plain.reply_tokens()
    assert torch.equal(with_config.logprobs, plain.logprobs)
    assert {3, 4, 5} <= {
        token for reply in plain.reply_tokens() for token in reply
    }  # what suppress_tokens would forbid
    assert len({tuple(r) for r in plain.reply_tokens()[:8]}) > 4  # and top_k 1 would make alike
