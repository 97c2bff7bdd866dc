"""What several models wrote to the same held-out prompts, in numbers: gold reward, win rate, KL, length, endings, fluency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.data.prompts import PromptData
from accord.data.tokenizer import Tokenizer
from accord.evaluation.metrics import bootstrap_ci, distinct_n, effect_in_sd, paired_difference, win_rate
from accord.models.backbone import Backbone
from accord.models.language import reply_logprobs
from accord.rollout.collect import read_replies
from accord.rollout.generate import Decoding, generate
from accord.rollout.score import TextReward, call_function
from accord.types import Generation, Packed


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model wrote: ``k`` replies to each prompt, row p·k + j being reply j to prompt p."""

    texts: list[str]
    gold: list[list[float]]  # per prompt
    kl: list[float]  # per reply, nats
    lengths: list[int]
    ended: list[bool]
    base_nll: list[float]  # per reply, nats a token under the base; empty without one


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn: ``replies`` to each prompt, in groups of about ``batch_size`` replies."""

    decoding: Decoding
    replies: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Gold:
    """The reward that no trainer sees: a function of texts, with its name for error messages."""

    function: TextReward
    name: str

    def __call__(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        """One score for each reply.  Raises UserError where the function returns something else."""
        scores: list[float] = call_function(self.function, self.name, list(prompts), list(replies)).tolist()
        return scores


@dataclass(frozen=True, slots=True)
class Measures:
    """What all models' replies are measured with."""

    gold: Gold
    reference: Backbone
    """The KL is to this model, at the sampling temperature."""
    base: Backbone | None
    """Fluency is the negative log-likelihood under this model."""
    temperature: float


def answer(
    backbone: Backbone, data: PromptData, sampling: Sampling, generator: Callable[[int], torch.Generator]
) -> list[Generation]:
    """A model's replies to all prompts; ``generator`` gives the random state of the group that starts at a prompt."""
    step = max(1, sampling.batch_size // sampling.replies)
    return [
        generate(backbone, data.prompts[i : i + step], sampling.decoding, generator(i), sampling.replies)[0]
        for i in range(0, len(data.prompts), step)
    ]


@torch.no_grad()
def reply_sums(
    backbone: Backbone, generations: Sequence[Generation], temperature: float, size: int = 64
) -> list[float]:
    """Log-probs of whole replies under a model, ``size`` replies in a pass."""

    def logprobs(packed: Packed, at: Tensor) -> Tensor:
        return reply_logprobs(backbone, packed, at, temperature)

    return [x for g in generations for x in read_replies(g, size, logprobs).sum(1).tolist()]


def measure(generations: Sequence[Generation], tokenizer: Tokenizer, data: PromptData, measures: Measures) -> Answers:
    """The texts and measures of one model's replies, equally many to each prompt."""
    texts = [tokenizer.decode(r).strip() for g in generations for r in g.reply_tokens()]
    k = len(texts) // len(data)
    scores = measures.gold([text for text in data.texts for _ in range(k)], texts)
    own = [float(x) for g in generations for x in g.logprobs.sum(1)]
    lengths = [int(n) for g in generations for n in g.lengths]
    under = reply_sums(measures.reference, generations, measures.temperature)
    nll = []
    if measures.base is not None:
        nll = [-s / n for s, n in zip(reply_sums(measures.base, generations, 1.0), lengths, strict=True)]
    return Answers(
        texts,
        [scores[i : i + k] for i in range(0, len(scores), k)],
        [a - b for a, b in zip(own, under, strict=True)],
        lengths,
        [bool(e) for g in generations for e in g.ended],
        nll,
    )


def figures(ours: Answers, sft: Answers, seed: int) -> dict[str, Any]:
    """The numbers of one model, compared with the SFT model's own replies; None where one is undefined."""
    mean, low, high = bootstrap_ci(ours.gold, seed)
    rate, rate_low, rate_high = win_rate(ours.gold, sft.gold, seed)
    gain, gain_low, gain_high = paired_difference(ours.gold, sft.gold, seed)
    varied = len({sum(row) / len(row) for row in sft.gold}) > 1  # else there is no deviation to measure in
    worded = any(len(text.split()) > 1 for text in ours.texts)  # a collapsed model may write nothing
    result: dict[str, Any] = {
        "gold_mean": mean,
        "gold_ci95": [low, high],
        "kl_mean": sum(ours.kl) / len(ours.kl),
        "length_mean": sum(ours.lengths) / len(ours.lengths),
        "eos_rate": sum(ours.ended) / len(ours.ended),
        "win_rate_vs_sft": rate,
        "win_rate_ci95": [rate_low, rate_high],
        "gain_vs_sft": gain,
        "gain_ci95": [gain_low, gain_high],
        "gain_in_sft_sd": effect_in_sd(ours.gold, sft.gold) if varied else None,
        "distinct_2": distinct_n(ours.texts, 2) if worded else None,
    }
    if ours.base_nll:
        result["base_nll"] = sum(ours.base_nll) / len(ours.base_nll)
    return result
