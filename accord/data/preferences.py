"""Preference pairs: two replies to one prompt, one preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from accord.config.common import PromptedModel, SplitData
from accord.data.chat import as_message, exchange
from accord.data.formats.rows import FormattedRows
from accord.data.heldout import Split, read_split
from accord.data.messages import message_text
from accord.data.prompt_cut import Side, fit_prompt
from accord.data.prompts import is_blank, plain_text, rows_by_prompt
from accord.data.repeated_prompt import without_repeated_prompt
from accord.data.rows import (
    Prompt,
    Reply,
    Report,
    Row,
    Tally,
    Where,
    has_calls,
    is_empty,
    preference_fields,
    reply_text,
    soft_label,
)
from accord.data.sampled_ids import SampledIds
from accord.data.templated import divided
from accord.data.text_notes import LOST, REPEATED, SAMPLED, SHORTENED, TextNotes
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.readers import json_kind

ReplyCut = Literal["right", "drop"]
"""A reply that is too long is truncated at its end (and has no end token), or the pair is dropped."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two replies to the same prompt.  A reply ends with the end token unless it was truncated.

    Raises ValueError where a part is empty, the replies are the same, the margin or the weight is negative, or the label is
    below 1/2.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float = 0.0  # by how much chosen is preferred; 0 where unknown
    label: float = 1.0  # the probability that chosen is preferred, at least 1/2, which is a tie
    weight: float = 1.0  # a factor of the loss

    def __post_init__(self) -> None:
        if not (self.prompt and self.chosen and self.rejected):
            raise ValueError("a preference pair needs a prompt and two replies")
        if self.chosen == self.rejected or self.margin < 0:
            raise ValueError("a preference pair needs two different replies and a margin of at least 0")
        if not (0.5 <= self.label <= 1 and self.weight >= 0):
            raise ValueError("a preference pair needs a label from 1/2 to 1 and a weight of at least 0")

    @property
    def tied(self) -> bool:
        """Whether neither reply is preferred."""
        return self.label == 0.5

    def __len__(self) -> int:
        """Tokens when packed, the prompt counted once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """The usable pairs of a file, in file order."""

    pairs: tuple[PreferencePair, ...]
    texts: tuple[str, ...]  # of each pair's prompt, whole
    replies: tuple[tuple[str, str], ...]  # chosen and rejected of each pair, whole
    report: Report
    categories: tuple[str, ...] = ()  # of each pair, where columns of categories were asked for; empty: none

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, slots=True)
class PairLengths:
    """Maximum tokens of a pair, and how longer ones are truncated; ``total`` bounds prompt and reply together.

    Raises UserError where there is no room for a prompt or for a reply.
    """

    prompt: int
    total: int
    cut_prompt: Side = "left"
    cut_reply: ReplyCut = "right"

    def __post_init__(self) -> None:
        if not 1 <= self.prompt < self.total:
            raise UserError(
                f"max_prompt_length: {self.prompt}, expected at least 1 and less than max_length ({self.total}), "
                "which bounds prompt and reply together"
            )


def load_preferences(
    path: str | Path, tokenizer: Tokenizer, lengths: PairLengths, limit: int = 0, categories: Sequence[str] = ()
) -> PreferenceData:
    """Reads ``{"prompt", "chosen", "rejected"}`` rows with an optional "margin", or "label" and "weight": plain strings or
    messages, with the prompt in a field of its own or as the common start of both.

    A label below 1/2 exchanges the replies.  Replies with token ids as they were sampled (``accord.data.sampled_ids``) have
    those.  Equal replies (before or after truncation), empty pairs and rows of weight 0
    are dropped.
    ``limit`` > 0 reads the first rows only.  ``categories`` are columns, of which the first that a row has names its pair's
    category.  Raises UserError, naming file and row.
    """
    tally, sampled = Tally(), SampledIds(tokenizer)
    pairs, texts, replies, named = [], [], [], []
    notes = TextNotes(tokenizer)
    found = FormattedRows(path, "preferences", tokenizer.chat_template is not None, categories)
    for where, row in divided(islice(found, limit or None), tokenizer, notes):
        tally.rows += 1
        fields, (label, weight) = preference_fields(row, where), soft_label(row, where)
        fields = _without_prompt(fields, tokenizer, notes)
        keys = ["chosen", "rejected"]
        if label < 0.5:
            prompt, chosen, rejected, margin = fields
            fields, label = (prompt, rejected, chosen, margin), 1 - label
            keys.reverse()
        if not weight:
            tally.dropped["weight 0"] += 1
            continue
        pair = _pair(fields, where, lengths, tally, notes, [partial(sampled.of, row, key) for key in keys])
        if pair is not None:
            pair = replace(pair, label=label, weight=weight) if (label, weight) != (1.0, 1.0) else pair
            tally.tokens += len(pair)
            pairs.append(pair)
            named.append(category_of(row, categories, where))
            texts.append(plain_text(fields[0]))
            replies.append((reply_text(fields[1]), reply_text(fields[2])))
    tally.notes = notes.counts()
    tally.add_formats(found.describe(), found.dropped)
    return PreferenceData(tuple(pairs), tuple(texts), tuple(replies), tally.report(path), tuple(named))


def category_of(row: Row, columns: Sequence[str], where: Where) -> str:
    """The value of the first of these columns that a row has, as text; empty where it has none.

    Raises UserError for a list or a mapping.
    """
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None:
        return ""
    if isinstance(row[column], (list, Mapping)):
        raise where.error(f"{column!r} is a JSON {json_kind(row[column])}, expected one value that names a category")
    return str(row[column]).strip()


def _pair(
    fields: tuple[Prompt, Reply, Reply, float],
    where: Where,
    lengths: PairLengths,
    tally: Tally,
    notes: TextNotes,
    sampled: Sequence[Callable[[Sequence[int], Reply, Where], tuple[int, ...] | None]],
) -> PreferencePair | None:
    """A row's pair; None where it is dropped, which ``tally`` counts.

    ``sampled``: of chosen and of rejected, the ids as sampled, by the prompt's ids and the text.
    """
    prompt, chosen, rejected, margin = fields
    tokenizer = notes.tokenizer
    reason = None
    if is_blank(prompt):
        reason = "empty prompt"
    elif (is_empty(chosen) or is_empty(rejected)) and not (has_calls(chosen) or has_calls(rejected)):
        reason = "empty reply"
    elif _stripped(chosen) == _stripped(rejected):
        reason = "tie"
    if reason:
        tally.dropped[reason] += 1
        return None
    notes.add_row(prompt, as_message(chosen), as_message(rejected))
    with where.named():
        exchanges = [exchange(tokenizer, prompt, reply) for reply in (chosen, rejected)]
        fitted = fit_prompt(tokenizer, prompt, exchanges[0].prompt, lengths.prompt, lengths.cut_prompt)
    notes.add(LOST, sum(e.lost_thoughts for e in exchanges))
    notes.add_ids([*exchanges[0].prompt, *exchanges[0].reply, *exchanges[1].reply])
    if fitted is None:
        tally.dropped["prompt too long"] += 1
        return None
    own = [of(e.prompt, text, where) for of, e, text in zip(sampled, exchanges, (chosen, rejected), strict=True)]
    whole = [ids or tuple(e.reply) for ids, e in zip(own, exchanges, strict=True)]
    room = lengths.total - len(fitted.ids)
    cut = sum(len(ids) > room for ids in whole)
    if cut and lengths.cut_reply == "drop":
        tally.dropped["reply too long"] += 1
        return None
    replies = [ids[:room] for ids in whole]
    if replies[0] == replies[1]:
        tally.dropped["tie" if not cut else "tie once cut"] += 1
        return None
    tally.cut_prompt(fitted.lost, len(fitted.ids))
    notes.add(SHORTENED, fitted.turns > 0)
    tally.truncated_replies += cut
    notes.add(SAMPLED, any(ids != tuple(e.reply) for ids, e in zip(whole, exchanges, strict=True)))
    tally.retokenized += any(e.split and ids is None for e, ids in zip(exchanges, own, strict=True))
    return PreferencePair(fitted.ids, replies[0], replies[1], margin)


def _stripped(reply: Reply) -> Reply:
    return reply.strip() if isinstance(reply, str) else {**reply, "content": message_text(reply).strip()}


def _without_prompt(
    fields: tuple[Prompt, Reply, Reply, float], tokenizer: Tokenizer, notes: TextNotes
) -> tuple[Prompt, Reply, Reply, float]:
    """The fields of a pair, without the prompt where both replies repeat it at their start."""
    prompt, chosen, rejected, margin = fields
    rest = without_repeated_prompt(prompt, (chosen, rejected), tokenizer.chat_template is not None)
    if rest is None:
        return fields
    notes.add(REPEATED, 1)
    return prompt, rest[0], rest[1], margin


def read_pairs(data: SplitData, model: PromptedModel, tokenizer: Tokenizer, seed: int) -> Split[PreferencePair]:
    """The pairs of a stage.  Raises UserError where no training pair is left."""
    lengths = PairLengths(model.prompt_room, model.max_length)

    def read(path: str) -> tuple[Sequence[PreferencePair], Sequence[str], str]:
        found = load_preferences(path, tokenizer, lengths)
        return found.pairs, found.texts, found.report.describe()

    return read_split(data, read, seed, lambda pair: pair.prompt)


def decided(pairs: Sequence[PreferencePair]) -> Sequence[PreferencePair]:
    """The pairs that are no ties."""
    return [pair for pair in pairs if not pair.tied] if any(pair.tied for pair in pairs) else pairs


def longest_text(pairs: Sequence[PreferencePair]) -> int:
    """Tokens of the longest prompt with one of its replies; 0 without pairs."""
    return max((len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs), default=0)


def units(pairs: Sequence[PreferencePair], by_prompt: bool) -> list[list[int]]:
    """The units that batches are made of, as rows: single pairs, or all pairs of a prompt, whose replies are then encoded
    once.  Units are in the order of their first row.
    """
    if not by_prompt:
        return [[row] for row in range(len(pairs))]
    return list(rows_by_prompt(pair.prompt for pair in pairs).values())


def unit_length(pairs: Sequence[PreferencePair], rows: Sequence[int]) -> int:
    """Tokens of a unit, its prompt and each distinct reply counted once."""
    replies = {reply for row in rows for reply in (pairs[row].chosen, pairs[row].rejected)}
    return len(pairs[rows[0]].prompt) + sum(map(len, replies))
