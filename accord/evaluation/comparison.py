"""Metrics of several models on the same held-out prompts: gold reward, win rate, KL, length, ended replies, fluency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from accord.config.functions import TextScores, scores_of
from accord.data.prompts import PromptData
from accord.data.reply_text import sampled_text
from accord.data.tokenizer import Tokenizer
from accord.evaluation.metrics import bootstrap_ci, defined, distinct_n, effect_in_sd, paired_difference, win_rate
from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.rollout.collect import read_replies
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import Replies, Reward, total
from accord.types import Generation, Packed


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's replies, ``k`` per prompt, and their measures; row p·k + j is reply j to prompt p."""

    texts: list[str]
    gold: list[list[float]]  # per prompt
    kl: list[float]  # per reply, nats
    lengths: list[int]
    ended: list[bool]
    base_nll: list[float]  # per reply, nats per token under the base model; empty without one
    proxy: list[float] = field(default_factory=list)  # per reply, the reward model's score; empty without one


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are sampled: ``per_prompt`` to each prompt, in groups of about ``batch_size`` replies."""

    decoding: Decoding
    per_prompt: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold reward, best one that no trainer saw: a function of texts, with its name for error messages."""

    function: TextScores
    name: str

    def __call__(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """One score for each reply.  Raises UserError where the function returns something else."""
        return scores_of(self.function, self.name, prompts, replies)


@dataclass(frozen=True, slots=True)
class Measures:
    """What replies are measured with, the same for all models."""

    gold: Gold
    reference: Backbone
    """Reference of the KL, at the sampling temperature."""
    base: Backbone | None
    """Model for fluency, the negative log-likelihood of replies."""
    temperature: float
    proxy: Reward | None = None
    """The reward model that policies were trained against."""


def sample_replies(
    backbone: Backbone, data: PromptData, sampling: Sampling, keys: Callable[[Sequence[int], int], list[int]]
) -> list[Generation]:
    """A model's replies to all prompts; ``keys`` maps (prompt indices, samples) to the replies' keys."""
    step, k = max(1, sampling.batch_size // sampling.per_prompt), sampling.per_prompt
    groups = [range(i, min(i + step, len(data))) for i in range(0, len(data), step)]
    return [
        generate(backbone, [data.prompts[i] for i in group], sampling.decoding, keys(group, k), k)[0]
        for group in groups
    ]


@torch.no_grad()
def sum_logprobs(
    backbone: Backbone, generations: Sequence[Generation], temperature: float, size: int = 64
) -> list[float]:
    """The log-prob of each whole reply under a model, ``size`` replies per forward pass."""

    def logprobs(packed: Packed, at: Tensor) -> Tensor:
        return reply_logprobs(backbone, packed, at, temperature)

    return [x for g in generations for x in read_replies(g, size, logprobs).sum(1).tolist()]


def measure(generations: Sequence[Generation], tokenizer: Tokenizer, data: PromptData, measures: Measures) -> Answers:
    """The texts and measures of one model's replies, the same number per prompt."""
    texts = [
        sampled_text(tokenizer, prompt, reply)
        for g in generations
        for prompt, reply in zip(g.prompts, g.reply_tokens(), strict=True)
    ]
    k = len(texts) // len(data)
    scores = measures.gold([text for text in data.texts for _ in range(k)], texts)
    policy = [float(x) for g in generations for x in g.logprobs.sum(1)]
    lengths = [int(n) for g in generations for n in g.lengths]
    reference = sum_logprobs(measures.reference, generations, measures.temperature)
    nll = []
    if measures.base is not None:
        nll = [-s / n for s, n in zip(sum_logprobs(measures.base, generations, 1.0), lengths, strict=True)]
    proxy = []
    if measures.proxy is not None:
        sources = [source for source in data.sources for _ in range(k)]
        tokens = [reply for g in generations for reply in g.reply_tokens()]
        prompts, ended = [p for g in generations for p in g.prompts], [bool(e) for g in generations for e in g.ended]
        terms = measures.proxy(Replies(sources, texts, prompts, tokens, ended))
        proxy = [float(score) for score in total(terms, texts)]
    return Answers(
        texts,
        [scores[i : i + k] for i in range(0, len(scores), k)],
        [a - b for a, b in zip(policy, reference, strict=True)],
        lengths,
        [bool(e) for g in generations for e in g.ended],
        nll,
        proxy,
    )


def compare_with_sft(ours: Answers, sft: Answers, seed: int) -> dict[str, Any]:
    """One model's metrics, compared with the SFT model's replies; None where a metric is undefined."""
    gold = bootstrap_ci(ours.gold, seed)
    rate = win_rate(ours.gold, sft.gold, seed)
    gain = paired_difference(ours.gold, sft.gold, seed)
    means = {"base_nll": ours.base_nll, "proxy_mean": ours.proxy}
    more = {name: partial(fmean, values) for name, values in means.items() if values}
    some = defined(
        {
            "kl_mean": lambda: sum(ours.kl) / len(ours.kl),
            "gain_in_sft_sd": lambda: effect_in_sd(ours.gold, sft.gold),  # SFT's scores may not vary
            "distinct_2": lambda: distinct_n(ours.texts, 2),  # a collapsed model may have no two words
            **more,
        }
    )
    return {
        "gold_mean": gold.mean,
        "gold_ci95": [gold.low, gold.high],
        "kl_mean": some.pop("kl_mean"),
        "length_mean": sum(ours.lengths) / len(ours.lengths),
        "eos_rate": sum(ours.ended) / len(ours.ended),
        "win_rate_vs_sft": rate.mean,
        "win_rate_ci95": [rate.low, rate.high],
        "gain_vs_sft": gain.mean,
        "gain_ci95": [gain.low, gain.high],
        **some,
    }
