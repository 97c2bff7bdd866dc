"""Rewards of replies: a trained reward model, a Python function, or a weighted sum of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from accord.config.functions import LARGEST_SCORE, TextScores, is_function, load_scores, scores_of
from accord.config.on_policy import RewardSettings
from accord.data.chat import closing_ids, prompt_ids, reply_ids
from accord.data.packing import pack_continuations
from accord.data.prompts import plain_text
from accord.data.rows import Prompt
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.models.reward import RewardModel


@dataclass(frozen=True, slots=True)
class Replies:
    """``B`` replies, as text and as the policy's tokens (a final EOS included where the reply ended)."""

    prompts: Sequence[Prompt]  # as in the file: text or messages
    texts: Sequence[str]
    prompt_tokens: Sequence[Sequence[int]]
    tokens: Sequence[Sequence[int]]
    ended: Sequence[bool] = ()  # whether the policy ended it; empty: all are


class Reward(Protocol):
    """Scores of replies, (B,) float32 each: the terms by name; their weighted sum is the reward."""

    def __call__(self, replies: Replies) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A Python function of texts."""

    name: str  # of its term among the metrics
    function: TextScores
    source: str = ""  # as in the config, for messages

    def __call__(self, replies: Replies) -> dict[str, Tensor]:
        """Raises UserError where the function fails, or does not return one finite number for each reply."""
        scores = scores_of(
            self.function, self.source or self.name, [plain_text(p) for p in replies.prompts], replies.texts
        )
        return {self.name: torch.tensor(scores, dtype=torch.float32)}


@dataclass(frozen=True, slots=True)
class ModelReward:
    """A trained reward model.  Where its tokenizer is not the policy's, replies are tokenized again from their text.

    One of transformers' reads what its template writes after a reply's end token too, as it did in its training.
    """

    name: str
    model: RewardModel
    tokenizer: Tokenizer
    same_tokens: bool
    batch_size: int = 64

    @torch.no_grad()
    def __call__(self, replies: Replies) -> dict[str, Tensor]:
        device = next(self.model.backbone.parameters()).device
        scores = []
        for i in range(0, len(replies.texts), self.batch_size):
            rows = range(i, min(i + self.batch_size, len(replies.texts)))
            prompts, tokens = self._tokens(replies, rows)
            self._require_room(prompts, tokens)
            packed, segments = pack_continuations(prompts, tokens)
            scores.append(self.model(packed.to(device), segments.to(device)).float().cpu())
        return {self.name: torch.cat(scores)}

    def _require_room(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> None:
        """Raises UserError where a text has more tokens than the model has positions."""
        limit = self.model.backbone.max_positions
        longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
        if limit is not None and longest > limit:
            raise UserError(
                f"the reward model has positions for {limit} tokens, and a prompt with its reply has {longest}; shorten"
                " prompts or replies, or take another reward model."
            )

    def _tokens(self, replies: Replies, rows: range) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
        closing = closing_ids(self.tokenizer) if self.model.pooling == "sequence" else []
        ended = [not replies.ended or bool(replies.ended[r]) for r in rows]
        if self.same_tokens:
            own = [replies.tokens[r] for r in rows]
            if closing:
                own = [[*reply, *closing] if end else reply for reply, end in zip(own, ended, strict=True)]
            return [replies.prompt_tokens[r] for r in rows], own
        prompts: list[Sequence[int]] = [prompt_ids(self.tokenizer, replies.prompts[r]) for r in rows]
        tokens: list[Sequence[int]] = []
        for r, end in zip(rows, ended, strict=True):
            reply = reply_ids(self.tokenizer, replies.prompts[r], replies.texts[r])
            cut = not end and len(reply) > 1
            tokens.append(
                reply[:-1] if cut else [*reply, *closing] if end else reply
            )  # no EOS for a reply that was cut
        return prompts, tokens


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A weighted sum of rewards, every term reported by name."""

    terms: tuple[tuple[float, Reward], ...]

    def __call__(self, replies: Replies) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for i, (weight, reward) in enumerate(self.terms):
            for name, scores in reward(replies).items():
                result[f"{name}_{i}" if name in result else name] = weight * scores  # two terms with one name
        return result


def model_rewards(reward: Reward) -> Iterator[ModelReward]:
    """The parts of a reward that are trained models."""
    if isinstance(reward, ModelReward):
        yield reward
    if isinstance(reward, WeightedReward):
        for _, term in reward.terms:
            yield from model_rewards(term)


def reward_models(reward: Reward) -> Iterator[RewardModel]:
    """The trained models that a reward asks."""
    return (term.model for term in model_rewards(reward))


def total(terms: dict[str, Tensor], texts: Sequence[str]) -> Tensor:
    """(B,) the sum of the terms of replies with these texts.

    Raises UserError naming term and reply where a term or the sum is not finite, or too large.
    """
    summed = torch.stack(list(terms.values())).sum(0)
    for name, scores in {**terms, "the sum of all terms": summed}.items():
        if bool((wrong := ~(scores.abs() <= LARGEST_SCORE)).any()):  # true of NaN as well
            row = int(wrong.nonzero()[0])
            raise UserError(
                f"the reward {name}: the score of reply {row} ({texts[row][:60]!r}) is {float(scores[row])}; it must be"
                f" finite, and at most {LARGEST_SCORE:g}: look for huge numbers in the reward model's weights, and in"
                " reward.terms.*.weight."
            )
    return summed


def open_reward(source: str, policy_tokenizer: Tokenizer, device: torch.device | str, key: str) -> Reward:
    """A reward from ``module:function`` or a reward model's folder.  Raises UserError."""
    if is_function(source):
        return FunctionReward(source.partition(":")[2], load_scores(source, key), source)
    model = RewardModel.open(source)
    model.to(device).eval().requires_grad_(False)
    tokenizer = Tokenizer.open(source)
    return ModelReward("reward_model", model, tokenizer, tokenizer.digest() == policy_tokenizer.digest())


def open_rewards(settings: RewardSettings, tokenizer: Tokenizer, device: torch.device) -> Reward:
    """The reward that a config names: one source, or the weighted sum of its terms.  Raises UserError."""
    if not settings.terms:
        return open_reward(settings.source, tokenizer, device, "reward.source")
    terms = [
        (t.weight, open_reward(t.source, tokenizer, device, f"reward.terms.{i}.source"))
        for i, t in enumerate(settings.terms)
    ]
    return WeightedReward(tuple(terms))
