"""A judge that scores replies: a function, or a reward model.

Preferences follow Bradley-Terry: P(a over b) = σ((score_a − score_b) / noise).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from accord.config.functions import is_function, load_scores, scores_of
from accord.data.chat import prompt_ids, reply_ids
from accord.data.prompts import plain_text
from accord.data.rows import Prompt
from accord.data.samples import Sample
from accord.data.tokenizer import Tokenizer
from accord.feedback.entities import Choice
from accord.models.reward import RewardModel
from accord.rollout.score import ModelReward, Replies, total
from accord.stage_kinds.judges.judgment import Comparison, Judgment
from accord.stage_kinds.judges.matching import Matching, matched, probability
from accord.training.artifact import open_tokenizer, require_fit

Scores = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
"""One finite number for each reply."""


@dataclass(frozen=True, slots=True)
class ScoreJudge:
    """Prefers replies by their scores, with Bradley-Terry noise.  Scores that are equal, or closer than ``min_gap``, tie."""

    name: str
    scores: Scores
    matching: Matching
    noise: float
    min_gap: float
    seed: int

    def judge(self, samples: Sequence[Sample]) -> list[Judgment]:
        rng = random.Random(self.seed)
        flat = [(sample.prompt, c.text) for sample in samples for c in sample.candidates]
        scored = iter(self.scores([p for p, _ in flat], [t for _, t in flat]))
        judgments = []
        for index, sample in enumerate(samples):
            scores = [next(scored) for _ in sample.candidates]
            asked = probability(self.matching, len(scores))
            for a, b in matched(self.matching, len(scores), rng, scores):
                if sample.candidates[a].text != sample.candidates[b].text:
                    pair = Comparison(index, a, b, asked)
                    judgments.append(self._compare(pair, scores[a], scores[b], rng))
        return judgments

    def _compare(self, pair: Comparison, a: float, b: float, rng: random.Random) -> Judgment:
        gap = abs(a - b)
        choice: Choice = "tie"
        if gap and gap >= self.min_gap:
            choice = "a" if prefer(a, b, self.noise, rng) else "b"
        return Judgment(pair, choice, self.name, details={"scores": [a, b]})


def prefer(a: float, b: float, noise: float, rng: random.Random) -> bool:
    """Whether a judge prefers the reply scored ``a`` to the one scored ``b``."""
    if noise == 0:
        return a > b
    gap = max(-60.0, min(60.0, (a - b) / noise))
    return rng.random() < 1.0 / (1.0 + math.exp(-gap))


def function_scores(name: str, key: str) -> Scores:
    """The scores of ``module:function``.  Raises UserError; so does the result, where the function fails."""
    function = load_scores(name, key)
    return lambda prompts, texts: scores_of(function, name, [plain_text(p) for p in prompts], texts)


def reward_scores(folder: str, samples: Sequence[Sample], device: torch.device) -> Scores:
    """The scores of a reward model, which can read all the samples.  Raises UserError where it cannot."""
    model = RewardModel.open(folder)
    tokenizer = open_tokenizer(folder)
    require_fit(folder, model.backbone, tokenizer, _longest(samples, tokenizer))
    model.to(device).eval().requires_grad_(False)
    reward = ModelReward("judge", model, tokenizer, same_tokens=False)

    def scores(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        if not texts:
            return []
        found: list[float] = total(reward(Replies(prompts, texts, [], [])), texts).tolist()
        return found

    return scores


def open_scores(judge: str, samples: Sequence[Sample], device: torch.device) -> Scores:
    """Of a function or a reward model.  Raises UserError."""
    return function_scores(judge, "judge") if is_function(judge) else reward_scores(judge, samples, device)


def _longest(samples: Sequence[Sample], tokenizer: Tokenizer) -> int:
    """Tokens of the longest prompt with one of its replies."""
    lengths = [
        len(prompt_ids(tokenizer, sample.prompt)) + len(reply_ids(tokenizer, sample.prompt, c.text))
        for sample in samples
        for c in sample.candidates
    ]
    return max(lengths, default=0)
