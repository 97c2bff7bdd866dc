"""Scores of replies: functions, reward models alone and in batches, and weighted sums of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models
from torch import Tensor, nn

from accord.data.chat import prompt_ids, reply_ids
from accord.data.tokenizer import SMALL_ALPHABET, SMALL_SPECIALS, SMALL_TEMPLATE, Tokenizer, small_tokenizer
from accord.errors import UserError
from accord.models.open import small_backbone
from accord.models.reward import RewardModel, ScalarHead
from accord.rollout.score import (
    FunctionReward,
    ModelReward,
    Replies,
    Reward,
    WeightedReward,
    open_reward,
    total,
)
from accord.types import Packed

ASKED = ["what is the sea?", "what is the sky?", "what is the sea?", "hi", "tell me", "what is the sun?", "name a cat"]
SAID = ["blue", "it is very high up there", "wet", "hello", "", "a star: hot, bright", "tom"]


def tiny_reward(pooling: str = "last", family: str = "mamba") -> RewardModel:
    torch.manual_seed(1)
    model = RewardModel(small_backbone(family, 32, 2, 50, 1, 0), ScalarHead(32), pooling)  # type: ignore[arg-type]
    model.mean.fill_(0.3)
    model.deviation.fill_(2.0)
    return model.eval()


def replies_of(tokenizer: Tokenizer, rows: Sequence[int] = range(len(ASKED))) -> Replies:
    asked, said = [ASKED[r] for r in rows], [SAID[r] for r in rows]
    tokens = [reply_ids(tokenizer, p, t) for p, t in zip(asked, said, strict=True)]
    return Replies(asked, said, [prompt_ids(tokenizer, p) for p in asked], tokens)


def reversed_tokenizer() -> Tokenizer:
    """The same characters under other ids."""
    vocab = {s: i for i, s in enumerate([*SMALL_SPECIALS, *reversed(SMALL_ALPHABET)])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.add_special_tokens(list(SMALL_SPECIALS))
    return Tokenizer(backend, {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}, SMALL_TEMPLATE)


class RecordingModel(nn.Module):
    """In the place of a reward model: remembers the tokens of each prompt and each reply that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling = "last"
        self.backbone = small_backbone("mamba", 32, 1, 50, 1, 0)
        self.prompts: list[list[int]] = []
        self.replies: list[list[int]] = []

    def forward(self, packed: Packed, segments: Tensor) -> Tensor:
        for segment in segments.tolist():
            token, places = int(packed.last[segment]), []
            while token >= 0:
                places.append(token)
                token = int(packed.previous[token])
            places.reverse()
            self.prompts.append([int(packed.tokens[i]) for i in places if not packed.loss_mask[i]])
            self.replies.append([int(packed.tokens[i]) for i in places if packed.loss_mask[i]])
        return torch.zeros(len(segments))


# ------------------------------------------------------------------------------------- functions
def test_a_reward_model_with_another_tokenizer_reads_the_same_turns_and_ends() -> None:
    """The turns of a conversation stay turns, and a reply that was cut gets no end token."""
    policy, other = small_tokenizer(), reversed_tokenizer()
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so?"},
    ]
    prompts = [turns, "tell me", turns]
    own = [prompt_ids(policy, p) for p in prompts]
    said = ["fine", "a tale", "fine"]
    tokens = [reply_ids(policy, p, t) for p, t in zip(prompts, said, strict=True)]
    tokens[2] = tokens[2][:-1]
    model = RecordingModel()
    ModelReward("model", cast(RewardModel, model), other, same_tokens=False)(
        Replies(prompts, said, own, tokens, [True, True, False])
    )
    read, replied = model.prompts, model.replies
    assert [other.decode(r).replace(" ", "") for r in read] == [policy.decode(r).replace(" ", "") for r in own]
    assert [other.decode(r).replace(" ", "") for r in replied] == [t.replace(" ", "") for t in said]
    assert [r[-1] == other.eos_id for r in replied] == [True, True, False]
    seen: list[list[str]] = []
    function = FunctionReward("f", lambda asked, texts: seen.append(asked) or [0.0] * len(texts))  # type: ignore[func-returns-value]
    function(Replies(prompts, said, own, tokens))
    assert seen == [["user: hi\nassistant: yo\nuser: so?", "tell me", "user: hi\nassistant: yo\nuser: so?"]]


def test_a_function_sees_texts_and_gives_numbers() -> None:
    reward = FunctionReward("length", lambda prompts, texts: [len(t) + 100 * len(p) for p, t in zip(prompts, texts)])  # noqa: B905
    scores = reward(replies_of(small_tokenizer(), [0, 3]))
    assert list(scores) == ["length"]
    assert scores["length"].tolist() == [1604.0, 205.0]
    assert scores["length"].dtype is torch.float32
    with pytest.raises(UserError, match=r"^the function length: the score of reply 1 \('hello'\) is None"):
        FunctionReward("length", lambda _prompts, _texts: [1.0, None])(replies_of(small_tokenizer(), [0, 3]))


# ------------------------------------------------------------------------------------- reward models
@pytest.mark.parametrize("family", ["mamba", "transformer"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_replys_score_does_not_depend_on_the_batch(family: str, pooling: str) -> None:
    """Scores are read at the last token whatever the batch; prompts are repeated, share beginnings and differ in length."""
    model, tokenizer = tiny_reward(pooling, family), small_tokenizer()
    alone = torch.cat(
        [ModelReward("m", model, tokenizer, True)(replies_of(tokenizer, [r]))["m"] for r in range(len(ASKED))]
    )
    assert alone.std() > 0.01
    for rows in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [2, 0, 1, 5], [4, 4, 1]):
        for size in (1, 2, 64):
            scores = ModelReward("m", model, tokenizer, True, size)(replies_of(tokenizer, rows))["m"]
            torch.testing.assert_close(scores, alone[rows], rtol=0, atol=2e-5)


def test_the_score_is_read_at_the_last_token_of_the_reply() -> None:
    """Compared with the whole text alone, its end token included."""
    model, tokenizer = tiny_reward(), small_tokenizer()
    scores = ModelReward("m", model, tokenizer, True)(replies_of(tokenizer))["m"]
    for r, (prompt, said) in enumerate(zip(ASKED, SAID, strict=True)):
        text = tokenizer.encode(f"<user>{prompt}<assistant>{said}<eos>")
        with torch.no_grad():
            raw = model.head(model.backbone(Packed.of([text]))[-1:])
        assert float(scores[r]) == pytest.approx((float(raw) - 0.3) / 2.0, abs=1e-5)


def test_a_cut_reply_is_scored_as_it_is() -> None:
    """The policy's tokens are what is scored: no end token is added to a reply that has none."""
    model, tokenizer = tiny_reward(), small_tokenizer()
    whole = replies_of(tokenizer, [1])
    cut = Replies(whole.prompts, whole.texts, whole.prompt_tokens, [list(whole.tokens[0])[:-1]])
    reward = ModelReward("m", model, tokenizer, True)
    assert abs(float(reward(whole)["m"]) - float(reward(cut)["m"])) > 1e-3


def test_texts_cross_to_another_tokenizer_and_ids_do_not() -> None:
    model, theirs, ours = tiny_reward(), reversed_tokenizer(), small_tokenizer()
    assert theirs.encode("ab") != ours.encode("ab")
    expected = ModelReward("m", model, theirs, True)(replies_of(theirs))["m"]
    found = ModelReward("m", model, theirs, False)(replies_of(ours))["m"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    wrong = ModelReward("m", model, theirs, True)(replies_of(ours))["m"]
    assert (wrong - expected).abs().max() > 0.05


def test_a_folder_is_opened_with_its_tokenizer(tmp_path: Path) -> None:
    for name, tokenizer, same in (("ours", small_tokenizer(), True), ("theirs", reversed_tokenizer(), False)):
        folder = tmp_path / name
        folder.mkdir()
        tiny_reward().save(str(folder))
        tokenizer.save(folder)
        reward = open_reward(str(folder), small_tokenizer(), "cpu", "reward.source")
        assert isinstance(reward, ModelReward)
        assert reward.same_tokens is same
        assert not any(p.requires_grad for p in reward.model.parameters())
        expected = ModelReward("m", tiny_reward(), tokenizer, True)(replies_of(tokenizer))["m"]
        torch.testing.assert_close(reward(replies_of(small_tokenizer()))["reward_model"], expected)
    with pytest.raises(UserError, match="not a reward model"):
        open_reward(str(tmp_path), small_tokenizer(), "cpu", "reward.source")


# ------------------------------------------------------------------------------------- sums
def constant(name: str, *values: float) -> Reward:
    return FunctionReward(name, lambda _prompts, _texts: values)


def test_terms_are_weighted_summed_and_reported_separately() -> None:
    reward = WeightedReward(((2.0, constant("a", 1.0, 10.0)), (-0.5, constant("b", 4.0, 6.0))))
    terms = reward(replies_of(small_tokenizer(), [0, 1]))
    assert {k: v.tolist() for k, v in terms.items()} == {"a": [2.0, 20.0], "b": [-2.0, -3.0]}
    assert total(terms, "ab").tolist() == [0.0, 17.0]


def test_terms_of_the_same_name_all_count() -> None:
    """Two reward models are both called reward_model."""
    reward = WeightedReward(((1.0, constant("a", 1.0)), (1.0, constant("a", 20.0)), (1.0, constant("a", 300.0))))
    terms = reward(replies_of(small_tokenizer(), [0]))
    assert len(terms) == 3
    assert total(terms, "a").tolist() == [321.0]


def test_the_sum_of_one_term_is_that_term() -> None:
    scores: dict[str, Tensor] = {"a": torch.tensor([1.0, -2.0])}
    assert torch.equal(total(scores, "ab"), scores["a"])


def test_a_reward_that_is_not_finite_is_named_with_its_reply() -> None:
    """Before it becomes a loss that is blamed on the learning rate: a reward model's NaN, and weighted sums that overflow."""
    good = torch.tensor([1.0, 2.0])
    with pytest.raises(
        UserError, match=r"^the reward reward_model: the score of reply 1 \('second'\) is nan; it must be finite"
    ):
        total({"length": good, "reward_model": torch.tensor([1.0, math.nan])}, ["first", "second"])
    with pytest.raises(UserError, match=r"^the reward the sum of all terms: the score of reply 0 \('first'\) is 1.8"):
        total({"a": torch.tensor([9e17, 1.0]), "b": torch.tensor([9e17, 1.0])}, ["first", "second"])
