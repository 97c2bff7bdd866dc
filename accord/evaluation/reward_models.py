"""A reward model's agreement with labels and with gold, and its correlation with length."""

from __future__ import annotations

from typing import Any

import torch

from accord.data.chat import prompt_ids, reply_ids
from accord.data.packing import pack_continuations
from accord.data.prompts import plain_text
from accord.data.rows import Where, preference_fields
from accord.data.tokenizer import Tokenizer
from accord.evaluation.comparison import Gold
from accord.evaluation.metrics import defined, length_correlation, length_matched_accuracy, pair_agreement
from accord.io.readers import read_jsonl
from accord.models.reward import RewardModel


@torch.no_grad()
def reward_figures(folder: str, pairs_file: str, room: int, gold: Gold) -> dict[str, Any]:
    """Accuracy on the annotator's held-out labels, and agreement with gold on the same pairs.

    Prompts are truncated at their start to ``room`` tokens.
    """
    model = RewardModel.open(folder).eval().requires_grad_(False)
    tokenizer = Tokenizer.open(folder)
    fields = [preference_fields(row, Where(pairs_file, n)) for n, row in read_jsonl(pairs_file)]
    prompts, sides = [plain_text(f[0]) for f in fields], ([f[1] for f in fields], [f[2] for f in fields])
    scores: list[list[float]] = []
    sizes: list[list[int]] = []
    for side in sides:
        tokens = [reply_ids(tokenizer, f[0], text) for f, text in zip(fields, side, strict=True)]
        asked = [prompt_ids(tokenizer, f[0])[-room:] for f in fields]
        sizes.append([len(t) for t in tokens])
        scores.append([])
        for rows in torch.split(torch.arange(len(fields)), 64):
            packed, segments = pack_continuations([asked[int(r)] for r in rows], [tokens[int(r)] for r in rows])
            scores[-1] += model(packed, segments).tolist()
    gold_scores = [gold(prompts, side) for side in sides]
    labels = [[1.0, 0.0]] * len(fields)
    pairs, gold_pairs = list(zip(*scores, strict=True)), list(zip(*gold_scores, strict=True))
    agreements = {
        "heldout_accuracy": lambda: pair_agreement(pairs, labels),
        "gold_agreement": lambda: pair_agreement(pairs, gold_pairs),  # gold may not tell any two replies apart
        "label_agreement_with_gold": lambda: pair_agreement(labels, gold_pairs),
    }
    matched = length_matched_accuracy(scores[0], scores[1], sizes[0], sizes[1])
    return {
        **defined(agreements),
        "n_heldout": len(fields),
        "length_correlation": length_correlation(scores[0] + scores[1], sizes[0] + sizes[1]),
        "length_matched_accuracy": matched.accuracy,
        "length_matched_pairs": matched.n,
    }
