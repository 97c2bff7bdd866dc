"""Pairs to be asked, from a file of sampled replies or of preferences."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from accord.data.files.source import open_source
from accord.data.formats.rows import FormattedRows, recognize
from accord.data.messages import with_texts
from accord.data.rows import Prompt, preference_fields, text_alone
from accord.data.samples import Candidate, Sample, read_samples
from accord.data.turns import inputs_of
from accord.errors import UserError
from accord.feedback.entities import TOKENIZER, NewCandidate, NewPair
from accord.io.digests import file_digest
from accord.runtime.seeds import derive

SAMPLES = "samples.jsonl"


def read_pairs(path: Path, per_prompt: int, seed: int, gold: bool) -> list[NewPair]:
    """The pairs of a file, or of ``samples.jsonl`` in a stage's folder.

    Rows are ``{"prompt", "candidates": [{"text", …}, …]}``, of which ``per_prompt`` pairs are drawn for each prompt, or
    preferences; with ``gold`` their chosen reply is the known answer, and without it nobody sees which it was.
    Raises UserError naming file and row.
    """
    if path.is_dir():
        if not (path / SAMPLES).is_file():
            raise UserError(f"{path}: has no {SAMPLES}; give the folder of a stage of kind sample, or a file.")
        path = path / SAMPLES
    where, first = next(open_source(path).rows)
    if "candidates" in first:
        if gold:
            raise UserError(
                f"{path}: sampled replies have no known answer; --gold needs rows with chosen and rejected."
            )
        return _of_samples(path, read_samples(str(path)), per_prompt, seed)
    if recognize(first, "preferences") is None:
        raise where.error("expected 'candidates', or 'chosen' and 'rejected', beside 'prompt'.")
    return _of_preferences(path, seed, gold)


def _of_samples(path: Path, samples: Sequence[Sample], per_prompt: int, seed: int) -> list[NewPair]:
    """Random pairs of different replies; each reply of a prompt is in at most one of its pairs."""
    pairs = []
    for index, sample in enumerate(samples):
        different = list({c.text: c for c in reversed(sample.usable().candidates)}.values())[::-1]
        count = min(per_prompt, len(different) // 2)
        order = random.Random(derive(seed, "pairs to ask", index)).sample(different, len(different))
        drawn = [(order[2 * k], order[2 * k + 1]) for k in range(count)]
        chance = count / comb(len(different), 2) if count else 1.0
        pairs += [
            NewPair(
                messages(sample.prompt),
                new_candidate(a),
                new_candidate(b),
                chance,
                None,
                str(path),
                inputs_of(sample.prompt),
            )
            for a, b in drawn
        ]
    if not pairs:
        raise UserError(
            f"{path}: no prompt has two different replies that ended; sample more, or at a higher temperature."
        )
    return pairs


def _of_preferences(path: Path, seed: int, gold: bool) -> list[NewPair]:
    """Each row is a pair, its replies in an order drawn by their number, so that the first one says nothing."""
    policy = f"file {file_digest(path)[:16]}"
    pairs = []
    for where, row in FormattedRows(path, "preferences"):
        prompt, chosen, rejected, _ = preference_fields(row, where)
        if chosen == rejected:
            raise where.error("'chosen' and 'rejected' are the same text; leave the row out.")
        a, b = (
            NewCandidate(text, None, policy, {}) for text in (text_alone(chosen, where), text_alone(rejected, where))
        )
        first = random.Random(derive(seed, "order of a row", where.row)).random() < 0.5
        pairs.append(
            NewPair(messages(prompt), a, b, 1.0, "a" if gold else None, str(path), inputs_of(prompt))
            if first
            else NewPair(messages(prompt), b, a, 1.0, "b" if gold else None, str(path), inputs_of(prompt))
        )
    return pairs


def new_candidate(candidate: Candidate) -> NewCandidate:
    """A sampled reply as the store takes it: with the model that sampled it, how, and the tokenizer its ids are of."""
    sampling = {key: getattr(candidate, key) for key in ("model", "temperature", "seed", "sample")}
    if candidate.tokenizer:
        sampling[TOKENIZER] = candidate.tokenizer
    return NewCandidate(candidate.text, candidate.tokens, candidate.digest or candidate.model, sampling)


def messages(prompt: Prompt) -> tuple[Mapping[str, Any], ...]:
    """A prompt as turns; a text is the user's."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else with_texts(prompt)
