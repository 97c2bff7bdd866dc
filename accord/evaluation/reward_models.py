"""A reward model's agreement with labels and with gold, and its correlation with length.

Training and ``compare`` score pairs by the same function, on texts cut to the same lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.config.common import PrecisionStage, PromptedModel
from accord.config.load import build
from accord.config.section import Section
from accord.data.packing import pack_preferences
from accord.data.preferences import PairLengths, PreferencePair, decided, load_preferences
from accord.data.tokenizer import Tokenizer
from accord.distributed import mesh
from accord.errors import UserError
from accord.evaluation.comparison import Gold
from accord.evaluation.metrics import defined, length_correlation, length_matched_accuracy, pair_agreement
from accord.io.digests import MANIFEST, read_manifest
from accord.models.reward import RewardModel
from accord.runtime.device import autocast

UNRECORDED = PairLengths(1024, 2**24)
"""For a reward model whose folder does not say how it was trained: long prompts are cut, replies are not."""


@torch.no_grad()
def reply_features(
    model: RewardModel, pairs: Sequence[PreferencePair], device: torch.device, precision: str, size: int = 32
) -> Tensor:
    """Pooled features of the chosen replies of n pairs, then of the rejected ones: (2n, D).  Ranks share the passes."""
    passes = torch.split(torch.arange(len(pairs)), size)
    found = torch.zeros(0)
    for number, counted in mesh.passes_of_this_rank(len(passes)):
        rows = passes[number]
        batch = pack_preferences([pairs[int(r)] for r in rows], rows.tolist()).to(device)
        with autocast(device, precision):
            features = model.features(batch.packed, torch.cat([batch.chosen, batch.rejected]))
        if not found.numel():
            found = features.new_zeros(2, len(pairs), features.shape[1])
        if counted:
            found[:, rows] = features.view(2, len(rows), -1)
    return mesh.add(found).flatten(0, 1)


@torch.no_grad()
def score_pairs(
    model: RewardModel, pairs: Sequence[PreferencePair], device: torch.device, precision: str, size: int = 32
) -> tuple[Tensor, Tensor]:
    """Raw scores of chosen and rejected replies, (n,) each, on the CPU."""
    features = reply_features(model, pairs, device, precision, size)
    chosen, rejected = model.head(features).float().cpu().chunk(2)
    return chosen, rejected


def accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """The share of pairs whose chosen reply scores higher, (n,) scores each; a tie counts one half."""
    return float(((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean())


def heldout_accuracy(
    model: RewardModel, pairs: Sequence[PreferencePair], device: torch.device, precision: str
) -> tuple[float, Tensor, Tensor]:
    """The accuracy on pairs that are no ties, as training and ``compare`` report it; and the scores, (n,) each."""
    chosen, rejected = score_pairs(model, pairs, device, precision)
    return accuracy(chosen, rejected), chosen, rejected


def training_lengths(folder: str) -> tuple[PairLengths, str]:
    """The lengths to which a reward model's training cut texts, and its precision, from its manifest.

    Raises UserError where the manifest holds other values than settings.
    """
    settings = read_manifest(Path(folder)).get("settings")
    model = settings.get("model") if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(model, Mapping):
        return UNRECORDED, "float32"
    where = f"{Path(folder) / MANIFEST}, settings"
    lengths = build(PromptedModel, _known(model, PromptedModel), {}, where)
    precision = build(PrecisionStage, _known(settings, PrecisionStage), {}, where).precision
    return PairLengths(lengths.prompt_room, lengths.max_length), precision


def _known(values: Mapping[str, Any], cls: type[Section]) -> dict[str, Any]:
    """The values of the fields that matter here: those of numbers and choices, not of inputs, which are blanked."""
    names = ("max_length", "max_prompt_length", "precision")
    return {name: values[name] for name in names if name in values and name in cls.model_fields}


@torch.no_grad()
def reward_figures(folder: str, pairs_file: str, gold: Gold, device: torch.device) -> dict[str, Any]:
    """Accuracy on the annotator's held-out labels, and agreement with gold on the same pairs.

    Texts are cut and scored as in the model's training, so that the accuracy is the one that training would report.
    """
    model = RewardModel.open(folder).to(device).eval().requires_grad_(False)
    lengths, precision = training_lengths(folder)
    found = load_preferences(pairs_file, Tokenizer.open(folder), lengths)
    pairs, texts, replies = zip(
        *sorted(zip(found.pairs, found.texts, found.replies, strict=True), key=_tied), strict=True
    )
    n = len(decided(pairs))
    if not n:
        raise UserError(
            f"{pairs_file}: every row is a tie (label 0.5), so there is no accuracy to measure; name another file."
        )
    measured, *parts = heldout_accuracy(model, pairs[:n], device, precision)
    if n < len(pairs):
        ties = score_pairs(model, pairs[n:], device, precision)
        parts = [torch.cat(both) for both in zip(parts, ties, strict=True)]
    chosen, rejected = parts
    sizes = [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]
    scores = torch.stack([chosen, rejected], 1).tolist()
    gold_scores = list(zip(*(gold(texts, side) for side in zip(*replies, strict=True)), strict=True))
    labels = [[0.5, 0.5] if pair.tied else [1.0, 0.0] for pair in pairs]
    agreements = {  # gold may not tell any two replies apart
        "gold_agreement": lambda: pair_agreement(scores, gold_scores),
        "label_agreement_with_gold": lambda: pair_agreement(labels, gold_scores),
    }
    first, second = (torch.tensor(side[:n]).numpy() for side in sizes)
    matched = length_matched_accuracy(chosen[:n].numpy(), rejected[:n].numpy(), first, second)
    return {
        "heldout_accuracy": measured,
        **defined(agreements),
        "n_heldout": n,
        "length_correlation": length_correlation([*chosen.tolist(), *rejected.tolist()], [*sizes[0], *sizes[1]]),
        "length_matched_accuracy": matched.accuracy,
        "length_matched_pairs": matched.n,
    }


def _tied(row: tuple[PreferencePair, str, tuple[str, str]]) -> bool:
    return row[0].tied
