"""The pairs of a stage, training and held-out apart: what the reward model and DPO share."""

from __future__ import annotations

from accord.config.common import SplitData, TextModel
from accord.data.preferences import PreferencePair, load_preferences, split_by_prompt
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError


def read_pairs(
    data: SplitData, model: TextModel, tokenizer: Tokenizer, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair], str]:
    """Training pairs, held-out pairs, and the report in words.  Raises UserError where nothing is left to train on."""
    found = load_preferences(data.train, tokenizer, model.prompt_room, model.max_length)
    pairs, report = list(found.pairs)[: data.limit or None], found.report.describe()
    if data.heldout:
        return pairs, list(load_preferences(data.heldout, tokenizer, model.prompt_room, model.max_length).pairs), report
    if data.heldout_fraction == 0:
        return pairs, [], report
    kept, heldout = split_by_prompt(pairs, data.heldout_fraction, seed)
    if not kept:
        raise UserError(
            "data.heldout_fraction holds every prompt out, so no pair is left to train on; make it smaller."
        )
    return kept, heldout, report
