"""Pairs of replies to one prompt, of which a person preferred one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accord.data.chat import exchange
from accord.data.prompts import Side, is_blank, is_heldout, kept_places
from accord.data.rows import Report, Row, Tally, Where, preference_fields
from accord.errors import UserError
from accord.io.readers import read_jsonl

if TYPE_CHECKING:
    from accord.data.tokenizer import Tokenizer

ReplyCut = Literal["right", "drop"]
"""Of a reply that is too long: lose its right (keep the start, without an end token), or drop the pair."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two replies to the same prompt tokens.  A reply ends with the end token unless it was cut.

    Raises ValueError where a part is empty, the replies are the same, or the margin is negative.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float = 0.0  # by how much, where the data says; 0 otherwise

    def __post_init__(self) -> None:
        if not (self.prompt and self.chosen and self.rejected):
            raise ValueError("a preference pair needs a prompt and two replies")
        if self.chosen == self.rejected or self.margin < 0:
            raise ValueError("a preference pair needs two different replies and a margin of at least 0")

    def __len__(self) -> int:
        """Tokens when packed: the prompt's once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """The usable pairs of a file, in its order."""

    pairs: tuple[PreferencePair, ...]
    report: Report

    def __len__(self) -> int:
        return len(self.pairs)


def load_preferences(
    path: str | Path,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    max_length: int,
    truncate_prompt: Side = "left",
    truncate_reply: ReplyCut = "right",
    limit: int = 0,
) -> PreferenceData:
    """Reads ``{"prompt", "chosen", "rejected"}`` rows with an optional "margin": plain strings or messages, with the
    prompt apart or as the part that both share.

    A pair is kept or dropped whole: ties (the same reply twice, before or after cutting) and empty ones are dropped.
    ``max_length`` bounds prompt and reply together.  ``limit`` > 0 reads the first rows only.
    Raises UserError, naming file and row.
    """
    if not 1 <= max_prompt_length < max_length:
        raise UserError(
            f"max_prompt_length: {max_prompt_length}, expected at least 1 and less than max_length ({max_length}), "
            "which bounds prompt and reply together"
        )
    tally = Tally()
    limits, sides = (max_prompt_length, max_length), (truncate_prompt, truncate_reply)
    pairs = []
    for number, row in islice(read_jsonl(path), limit or None):
        tally.rows += 1
        pair = _pair(row, Where(str(path), number), tokenizer, limits, sides, tally)
        if pair is not None:
            tally.tokens += len(pair)
            pairs.append(pair)
    return PreferenceData(tuple(pairs), tally.report(path))


def _pair(
    row: Row, where: Where, tokenizer: Tokenizer, limits: tuple[int, int], sides: tuple[Side, ReplyCut], tally: Tally
) -> PreferencePair | None:
    prompt, chosen, rejected, margin = preference_fields(row, where)
    reason = None
    if is_blank(prompt):
        reason = "empty prompt"
    elif not (chosen.strip() and rejected.strip()):
        reason = "empty reply"
    elif chosen.strip() == rejected.strip():
        reason = "tie"
    if reason:
        tally.dropped[reason] += 1
        return None
    with where.named():
        told = [exchange(tokenizer, prompt, reply) for reply in (chosen, rejected)]
    asked = told[0].prompt
    places = kept_places(asked, limits[0], sides[0], tokenizer.bos_id)
    if places is None:
        tally.dropped["prompt too long"] += 1
        return None
    room = limits[1] - len(places)
    cut = sum(len(t.reply) > room for t in told)
    if cut and sides[1] == "drop":
        tally.dropped["reply too long"] += 1
        return None
    replies = [tuple(t.reply[:room]) for t in told]
    if replies[0] == replies[1]:
        tally.dropped["tie" if not cut else "tie once cut"] += 1
        return None
    tally.truncated_prompts += len(places) < len(asked)
    tally.truncated_replies += cut
    tally.retokenized += any(t.apart for t in told)
    return PreferencePair(tuple(asked[i] for i in places), replies[0], replies[1], margin)


def split_by_prompt(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(train, held out).  All pairs of a prompt stand on one side, and stay there when rows are added."""
    sides = [is_heldout(pair.prompt, heldout_fraction, seed) for pair in pairs]
    train = [pair for pair, held in zip(pairs, sides, strict=True) if not held]
    return train, [pair for pair, held in zip(pairs, sides, strict=True) if held]


def units(pairs: Sequence[PreferencePair], by_prompt: bool) -> list[list[int]]:
    """What a batch is counted in: single pairs, or all pairs of a prompt (whose replies are then read once).

    Rows of each unit, units in the order of their first row.
    """
    if not by_prompt:
        return [[row] for row in range(len(pairs))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, pair in enumerate(pairs):
        groups.setdefault(tuple(pair.prompt), []).append(row)
    return list(groups.values())


def unit_length(pairs: Sequence[PreferencePair], rows: Sequence[int]) -> int:
    """Tokens of a unit, its prompt and each of its replies once."""
    replies = {reply for row in rows for reply in (pairs[row].chosen, pairs[row].rejected)}
    return len(pairs[rows[0]].prompt) + sum(map(len, replies))
