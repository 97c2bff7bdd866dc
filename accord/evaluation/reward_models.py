"""A reward model's agreement with labels and with gold, and its correlation with length.

Training and ``compare`` score pairs by the same function, on texts cut to the same lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accord.config.common import PrecisionStage, PromptedModel
from accord.config.load import build
from accord.config.section import Section
from accord.data.chat import closing_ids
from accord.data.packing import pack_preferences
from accord.data.preferences import (
    PairLengths,
    PreferenceData,
    PreferencePair,
    decided,
    load_preferences,
    longest_text,
)
from accord.data.tokenizer import Tokenizer
from accord.distributed import mesh
from accord.errors import UserError
from accord.evaluation.comparison import Gold
from accord.evaluation.metrics import (
    accuracy_interval,
    defined,
    length_correlation,
    length_matched_accuracy,
    pair_agreement,
)
from accord.io.digests import MANIFEST, read_manifest
from accord.io.readers import read_json_if_present
from accord.models.reward import RewardModel
from accord.runtime.device import autocast
from accord.training.artifact import require_fit

UNRECORDED = PairLengths(1024, 2**24)
"""For a reward model whose folder does not say how it was trained: long prompts are cut, replies are not."""
UNNAMED = "(none)"
"""The category of rows without one, beside rows that have one."""


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


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """A file's pairs with a reward model's raw scores, those with a preferred reply first, then ties."""

    data: PreferenceData
    decided: int
    """The number of pairs that are no ties."""
    accuracy: float
    """On these, as training and ``compare`` report it."""
    chosen: Tensor  # (n,)
    rejected: Tensor  # (n,)


@dataclass(frozen=True, slots=True)
class Reading:
    """How pairs are read and scored, where a reward model's own record does not say it."""

    limit: int = 0
    max_length: int = 0
    """Maximum tokens of prompt and reply together; 0: as in the model's training."""
    categories: Sequence[str] = ()
    """Columns that may name a pair's category."""


def lengths_for(folder: str, model: RewardModel, max_length: int = 0) -> tuple[PairLengths, str]:
    """The lengths to which texts are cut for a reward model, and its precision: those of its training.

    For a model of transformers, as many tokens as its config has positions for.
    """
    lengths, precision = training_lengths(folder)
    longest = max_length or (model.backbone.max_positions if lengths is UNRECORDED else None)
    if not longest and lengths is UNRECORDED and model.pooling == "sequence":
        longest = positions(folder)
    return (PairLengths(max(1, longest * 3 // 4), longest) if longest else lengths), precision


def positions(folder: str) -> int:
    """``max_position_embeddings`` of a folder's config.json; 0 where it has none."""
    found = (read_json_if_present(Path(folder) / "config.json", "write it again.") or {}).get("max_position_embeddings")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 1 else 0


def read_judged(folder: str, model: RewardModel, pairs_file: str, reading: Reading) -> PreferenceData:
    """The pairs of a file in a reward model's tokens, cut as for its training, ties last.

    Replies to a model of transformers end as its template ends them.  Raises UserError where no pair has a preferred reply,
    and where the model cannot read the tokens.
    """
    tokenizer = Tokenizer.open(folder)
    lengths, _ = lengths_for(folder, model, reading.max_length)
    found = load_preferences(pairs_file, tokenizer, lengths, reading.limit, reading.categories)
    require_fit(folder, model.backbone, tokenizer, longest_text(found.pairs))
    order = sorted(range(len(found)), key=lambda row: found.pairs[row].tied)
    pairs = [found.pairs[row] for row in order]
    if not decided(pairs):
        raise UserError(
            f"{pairs_file}: every row is a tie (label 0.5), so there is no accuracy to measure; name another file."
        )
    if model.pooling == "sequence" and (closing := tuple(closing_ids(tokenizer))):
        pairs = [_closed(pair, tokenizer.eos_id, closing) for pair in pairs]
    texts, replies, named = (
        tuple(part[row] for row in order) for part in (found.texts, found.replies, found.categories)
    )
    return replace(found, pairs=tuple(pairs), texts=texts, replies=replies, categories=named)  # type: ignore[arg-type]


def _closed(pair: PreferencePair, end: int, closing: tuple[int, ...]) -> PreferencePair:
    """A pair whose replies that end continue with what the template writes after them."""
    chosen, rejected = ((*ids, *closing) if ids[-1] == end else ids for ids in (pair.chosen, pair.rejected))
    return replace(pair, chosen=chosen, rejected=rejected)


@torch.no_grad()
def score_data(
    folder: str,
    model: RewardModel,
    data: PreferenceData,
    device: torch.device,
    size: int = 32,
    tick: Callable[[int], None] = lambda pairs: None,
) -> ScoredPairs:
    """The scores of pairs that ``read_judged`` has read, in the precision of the model's training; moves the model to the device.

    ``tick`` is called with the number of pairs scored since, and may raise to stop.
    """
    model.to(device)
    _, precision = lengths_for(folder, model)
    n = len(decided(data.pairs))
    parts = []
    for first, end in ((0, n), (n, len(data))):
        for start in range(first, end, size):
            rows = data.pairs[start : min(start + size, end)]
            parts.append(score_pairs(model, rows, device, precision, size))
            tick(len(rows))
    chosen, rejected = (torch.cat(side) for side in zip(*parts, strict=True))
    return ScoredPairs(data, n, accuracy(chosen[:n], rejected[:n]), chosen, rejected)


def length_figures(scored: ScoredPairs) -> dict[str, Any]:
    """How far the scores are those of length: their correlation, and the accuracy on pairs of similar length."""
    pairs, n = scored.data.pairs, scored.decided
    sizes = [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]
    chosen, rejected = scored.chosen, scored.rejected
    first, second = (torch.tensor(side[:n]).numpy() for side in sizes)
    matched = length_matched_accuracy(chosen[:n].numpy(), rejected[:n].numpy(), first, second)
    return {
        "length_correlation": length_correlation([*chosen.tolist(), *rejected.tolist()], [*sizes[0], *sizes[1]]),
        "length_matched_accuracy": matched.accuracy,
        "length_matched_pairs": matched.n,
    }


def reward_figures(folder: str, pairs_file: str, gold: Gold, device: torch.device) -> dict[str, Any]:
    """Accuracy on the annotator's held-out labels, and agreement with gold on the same pairs.

    Texts are cut and scored as in the model's training, so that the accuracy is the one that training would report.
    """
    model = RewardModel.open(folder).eval().requires_grad_(False)
    data = read_judged(folder, model, pairs_file, Reading())
    scored = score_data(folder, model, data, device)
    scores = torch.stack([scored.chosen, scored.rejected], 1).tolist()
    sides = zip(*data.replies, strict=True)
    gold_scores = list(zip(*(gold(data.texts, side) for side in sides), strict=True))
    labels = [[0.5, 0.5] if pair.tied else [1.0, 0.0] for pair in data.pairs]
    agreements = {  # gold may not tell any two replies apart
        "gold_agreement": lambda: pair_agreement(scores, gold_scores),
        "label_agreement_with_gold": lambda: pair_agreement(labels, gold_scores),
    }
    return {
        "heldout_accuracy": scored.accuracy,
        **defined(agreements),
        "n_heldout": scored.decided,
        **length_figures(scored),
    }


def accuracy_figures(scored: ScoredPairs) -> dict[str, Any]:
    """The accuracy on pairs that are no ties, with its 95 % interval over prompts, and the same by category.

    Equal scores count one half, and are counted.
    """
    n, data = scored.decided, scored.data
    correct = (((scored.chosen - scored.rejected).sign() + 1) / 2)[:n].tolist()
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(data.categories[:n]):
        rows.setdefault(name or UNNAMED, []).append(row)
    several = len(rows) > 1 or (len(rows) == 1 and UNNAMED not in rows)
    return {
        "heldout_accuracy": scored.accuracy,
        **_interval(correct, data.texts, range(n)),
        "n_heldout": n,
        "tied_labels": len(data) - n,
        **length_figures(scored),
        "categories": {
            name: {
                "accuracy": accuracy(scored.chosen[mine], scored.rejected[mine]),
                **_interval(correct, data.texts, mine),
                "pairs": len(mine),
            }
            for name, mine in sorted(rows.items())
            if several
        },
    }


def _interval(correct: Sequence[float], texts: Sequence[str], rows: Sequence[int]) -> dict[str, Any]:
    found = accuracy_interval([correct[r] for r in rows], [texts[r] for r in rows])
    return {"accuracy_ci95": [found.low, found.high], "equal_scores": sum(correct[r] == 0.5 for r in rows)}
