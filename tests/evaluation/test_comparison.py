"""The comparison: every number against one computed by hand or by a simpler loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from accord.data.prompts import PromptData, load_prompts
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.evaluation.comparison import (
    Answers,
    Gold,
    Measures,
    Sampling,
    compare_with_sft,
    measure,
    sample_replies,
    sum_logprobs,
)
from accord.models.backbone import Backbone
from accord.models.open import small_backbone
from accord.rollout.generate import Decoding
from accord.rollout.noise import reply_keys
from accord.rollout.score import Replies
from accord.types import Generation, Packed

K = 3
PROMPTS = ["what is red?", "hi", "name a cat and a dog", "two and two?", "the sea?"]


def share_of_a(prompts: list[str], replies: list[str]) -> list[float]:
    return [p.count("a") + r.count("a") / max(len(r), 1) + 1e-3 * len(r) for p, r in zip(prompts, replies, strict=True)]


GOLD = Gold(share_of_a, "share")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


def tiny(seed: int) -> Backbone:
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    return small_backbone("transformer", 32, 1, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)


@pytest.fixture(scope="module")
def model() -> Backbone:
    return tiny(0)


@pytest.fixture(scope="module")
def other() -> Backbone:
    return tiny(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> PromptData:
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return load_prompts(path, tokenizer, 1024)


@pytest.fixture(scope="module")
def decoding(tokenizer: Tokenizer) -> Decoding:
    return Decoding(12, tokenizer.eos_id, tokenizer.pad_id)


def keys(prompts: Sequence[int], samples: int) -> list[int]:
    return reply_keys(100, "the test", 0, prompts, samples)


@pytest.fixture(scope="module")
def written(model: Backbone, data: PromptData, decoding: Decoding) -> list[Generation]:
    return sample_replies(model, data, Sampling(decoding, K, 2 * K), keys)


@torch.no_grad()
def logprob_alone(backbone: Backbone, prompt: tuple[int, ...], reply: list[int], temperature: float) -> float:
    """The direct computation: one text, all logits, a sum."""
    hidden = backbone(Packed.of([(*prompt, *reply)]))
    logprobs = (backbone.logits(hidden).double() / temperature).log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(reply) - 1)
    return sum(float(logprobs[at, token]) for at, token in zip(places, reply, strict=True))


# ------------------------------------------------------------------ replies
def test_k_replies_to_each_prompt_in_order(written: list[Generation], data: PromptData) -> None:
    assert [len(g.prompts) for g in written] == [2 * K, 2 * K, K]  # two prompts at a time
    asked = [p for g in written for p in g.prompts]
    assert asked == [p for p in data.prompts for _ in range(K)]


@pytest.mark.parametrize("batch_size", [1, K, 100])
def test_replies_do_not_depend_on_the_groups(
    model: Backbone, data: PromptData, decoding: Decoding, written: list[Generation], batch_size: int
) -> None:
    again = sample_replies(model, data, Sampling(decoding, K, batch_size), keys)
    assert len(again) == (1 if batch_size == 100 else len(PROMPTS))  # with fewer than K at once, one prompt at a time
    assert [r for g in again for r in g.reply_tokens()] == [r for g in written for r in g.reply_tokens()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_replies_under_another_model(
    written: list[Generation], other: Backbone, temperature: float
) -> None:
    got = sum_logprobs(other, written, temperature, size=4)  # prompts are cut across passes
    expected = [
        logprob_alone(other, prompt, reply, temperature)
        for g in written
        for prompt, reply in zip(g.prompts, g.reply_tokens(), strict=True)
    ]
    assert got == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------ measuring
@pytest.fixture(scope="module")
def answers(
    written: list[Generation], tokenizer: Tokenizer, data: PromptData, other: Backbone, model: Backbone
) -> Answers:
    return measure(written, tokenizer, data, Measures(GOLD, other, model, 1.0))


def test_replies_are_measured_as_documented(
    answers: Answers,
    written: list[Generation],
    tokenizer: Tokenizer,
    decoding: Decoding,
    model: Backbone,
    other: Backbone,
) -> None:
    replies = [r for g in written for r in g.reply_tokens()]
    asked = [p for g in written for p in g.prompts]
    assert answers.texts == [tokenizer.decode(r).strip() for r in replies]
    assert answers.lengths == [len(r) for r in replies]
    assert answers.ended == [r[-1] == decoding.eos_id for r in replies]
    assert len({*answers.ended}) == 2  # both kinds are among them
    own = [logprob_alone(model, p, r, 1.0) for p, r in zip(asked, replies, strict=True)]
    under = [logprob_alone(other, p, r, 1.0) for p, r in zip(asked, replies, strict=True)]
    assert answers.kl == pytest.approx([a - b for a, b in zip(own, under, strict=True)], abs=2e-4)
    assert answers.base_nll == pytest.approx([-a / len(r) for a, r in zip(own, replies, strict=True)], rel=1e-4)


def test_gold_is_asked_about_the_right_prompt(answers: Answers) -> None:
    flat = share_of_a([p for p in PROMPTS for _ in range(K)], answers.texts)
    expected = [flat[i : i + K] for i in range(0, len(flat), K)]
    assert [len(row) for row in answers.gold] == [K] * len(PROMPTS)
    for got, want in zip(answers.gold, expected, strict=True):
        assert got == pytest.approx(want, rel=1e-6)


def test_a_models_kl_to_itself_is_zero(
    written: list[Generation], tokenizer: Tokenizer, data: PromptData, model: Backbone
) -> None:
    itself = measure(written, tokenizer, data, Measures(GOLD, model, None, 1.0))
    assert itself.kl == pytest.approx([0.0] * len(itself.kl), abs=1e-4)
    assert itself.base_nll == []


def test_log_probs_are_at_the_sampling_temperature(
    model: Backbone, tokenizer: Tokenizer, data: PromptData, decoding: Decoding
) -> None:
    """KL is between what was sampled and what the reference would sample: the temperature divides both."""
    cold = Decoding(decoding.max_new_tokens, decoding.eos_id, decoding.pad_id, 0.5)
    written = sample_replies(model, data, Sampling(cold, K, 100), keys)
    itself = measure(written, tokenizer, data, Measures(GOLD, model, None, 0.5))
    assert itself.kl == pytest.approx([0.0] * len(itself.kl), abs=1e-4)


# ------------------------------------------------------------------ figures
def made(gold: list[list[float]], **given: Any) -> Answers:
    n = sum(map(len, gold))
    settings: dict[str, Any] = {
        "texts": ["a b"] * n,
        "kl": [0.0] * n,
        "lengths": [2] * n,
        "ended": [True] * n,
        "base_nll": [],
        **given,
    }
    return Answers(gold=gold, **settings)


def test_figures_equal_their_hand_computed_values() -> None:
    sft = made([[0.0, 2.0], [1.0, 1.0], [4.0, 4.0]])
    ours = made(
        [[3.0, 3.0], [1.0, 2.0], [0.0, 5.0]],
        kl=[1, 2, 3, 4, 5, 9],
        lengths=[1, 2, 3, 4, 5, 6],
        ended=[True, True, True, False, False, True],
        base_nll=[1.0, 2.0, 3.0, 1.0, 2.0, 3.0],
        texts=["a b a b", "c", "", "a b", "x y", "x y"],
    )
    got = compare_with_sft(ours, sft, 0)
    assert got["gold_mean"] == pytest.approx((3 + 1.5 + 2.5) / 3)
    assert got["kl_mean"] == 4
    assert got["length_mean"] == 3.5
    assert got["eos_rate"] == pytest.approx(4 / 6)
    assert got["base_nll"] == 2
    assert got["gain_vs_sft"] == pytest.approx(got["gold_mean"] - 2)
    assert got["gain_in_sft_sd"] == pytest.approx(
        got["gain_vs_sft"] / (((1 - 2) ** 2 + (1 - 2) ** 2 + (4 - 2) ** 2) / 2) ** 0.5
    )
    assert got["distinct_2"] == pytest.approx(3 / 6)  # a b, b a, x y among a b, b a, a b, a b, x y, x y
    for key in ("gold_ci95", "win_rate_ci95", "gain_ci95"):
        low, high = got[key]
        assert low <= high
    assert json.loads(json.dumps(got)) == got


def test_a_collapsed_model_is_measured_too() -> None:
    """Nothing but empty replies and gold all alike: numbers that are undefined are null, and nothing fails."""
    nothing = made([[0.0, 0.0], [0.0]], texts=["", "a", ""], lengths=[1, 1, 1])
    got = compare_with_sft(nothing, nothing, 0)
    assert got["distinct_2"] is None
    assert got["gain_in_sft_sd"] is None
    assert (got["gold_mean"], got["win_rate_vs_sft"]) == (0, 0.5)
    assert json.loads(json.dumps(got)) == got


def test_a_model_against_itself_wins_half() -> None:
    sft = made([[0.0, 2.0], [1.0, 1.5], [4.0, 3.0]])
    got = compare_with_sft(sft, sft, 0)
    assert got["win_rate_vs_sft"] == pytest.approx(0.5)
    assert got["gain_vs_sft"] == 0
    assert "base_nll" not in got


def test_the_better_model_wins_and_not_the_worse() -> None:
    worse, better = made([[0.0, 1.0]] * 6), made([[2.0, 3.0]] * 6)
    sft = made([[0.5, 1.5], [0.0, 1.0], [1.0, 1.2], [0.3, 0.4], [0.9, 0.8], [0.1, 0.2]])
    assert compare_with_sft(better, sft, 0)["win_rate_vs_sft"] == 1
    assert compare_with_sft(better, sft, 0)["win_rate_ci95"] == [1, 1]
    assert compare_with_sft(worse, made([[1.5, 2.5], [2.0, 3.0]] * 3), 0)["win_rate_vs_sft"] == 0
    assert compare_with_sft(worse, sft, 0)["gain_vs_sft"] == pytest.approx(0.5 - sum(map(sum, sft.gold)) / 12)


def test_the_proxy_is_the_mean_score_of_the_reward_model(
    model: Backbone, written: list[Generation], tokenizer: Tokenizer, data: PromptData
) -> None:
    def proxy(replies: Replies) -> dict[str, torch.Tensor]:
        assert list(replies.prompts) == [p for p in data.sources for _ in range(K)]
        return {"proxy": torch.tensor([float(len(tokens)) for tokens in replies.tokens])}

    found = measure(written, tokenizer, data, Measures(GOLD, model, None, 1.0, proxy))
    assert compare_with_sft(found, found, 0)["proxy_mean"] == pytest.approx(sum(found.lengths) / len(found.lengths))
    without = measure(written, tokenizer, data, Measures(GOLD, model, None, 1.0))
    assert "proxy_mean" not in compare_with_sft(without, without, 0)
