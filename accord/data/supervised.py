"""Texts for supervised training: demonstrations, conversations or documents, as tokens with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from accord.config.common import Examples, SplitData
from accord.data.formats.rows import FormattedRows
from accord.data.heldout import Split, read_split
from accord.data.prompt_cut import fit_chat, tokens_to_keep
from accord.data.row_texts import row_texts
from accord.data.rows import Report, Tally
from accord.data.sampled_ids import SampledIds
from accord.data.templated import divided
from accord.data.text_notes import SHORTENED, TextNotes
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Cut = Literal["reply", "prompt", "drop"]
"""How a row that is too long is shortened: at the end of its last reply, at the start of the text before that reply, or by
dropping it."""


@dataclass(frozen=True, slots=True)
class SupervisedExample:
    """One text.  Its first token is never a label, since no token precedes it.

    Raises ValueError where the lengths differ, there is no label, or the first token is one.
    """

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]  # true on labels

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.loss_mask):
            raise ValueError(f"loss_mask: length {len(self.loss_mask)}, expected {len(self.tokens)}")
        if not any(self.loss_mask) or self.loss_mask[0]:
            raise ValueError("an example needs a label, and not at its first token")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class SupervisedData:
    """The usable rows of a file, in file order."""

    examples: tuple[SupervisedExample, ...]
    texts: tuple[str, ...]  # of each example's prompt, whole; of a text without a prompt the text itself
    report: Report

    def __len__(self) -> int:
        return len(self.examples)


def load_supervised(
    path: str | Path,
    tokenizer: Tokenizer,
    max_length: int,
    truncate: Cut = "reply",
    limit: int = 0,
    examples: Examples = "conversation",
) -> SupervisedData:
    """Reads ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}`` rows.

    Labels are the completion, every assistant turn that is to be learned, or the whole text, each up to and including the
    end token; a truncated reply has no end token.  ``limit`` > 0 reads the first rows only.  ``examples="turn"`` makes an
    example of each reply of a conversation.  Raises UserError, naming file and row.
    """
    if max_length < 2:
        raise UserError(f"max_length: {max_length}, expected at least 2")
    tally, sampled = Tally(), SampledIds(tokenizer)
    notes = TextNotes(tokenizer)
    made, texts = [], []
    found = FormattedRows(path, "sft", tokenizer.chat_template is not None)
    for where, row in divided(islice(found, limit or None), tokenizer, notes):
        read = row_texts(row, where, notes, sampled, examples)
        tally.rows += max(len(read), 1)
        if not read:
            tally.dropped["empty reply"] += 1
        for text in read:
            notes.add_ids(text.ids)
            tokens, mask = text.ids, _but_first(text.mask)
            if len(tokens) > max_length:
                whole_turns = truncate == "prompt" and text.learned and tokenizer.chat_template is not None
                fitted = fit_chat(tokenizer, text.turns, text.learned, max_length) if whole_turns else None
                cut = None
                if not whole_turns:
                    cut = _cut(tokens, mask, max_length, truncate, tokenizer.bos_id)
                elif fitted is not None:
                    cut = fitted.ids, _but_first(fitted.mask)
                if cut is None:
                    tally.dropped["too long" if truncate == "drop" else "no room for a reply"] += 1
                    continue
                tokens, mask = cut
                notes.add(SHORTENED, fitted is not None and fitted.turns > 0)
                tally.truncated_prompts += truncate == "prompt" and (fitted is None or fitted.lost > 0)
                tally.truncated_replies += truncate == "reply"
            tally.retokenized += text.split
            tally.tokens += len(tokens)
            made.append(SupervisedExample(tuple(tokens), tuple(mask)))
            texts.append(text.prompt)
    tally.notes = notes.counts()
    tally.add_formats(found.describe(), found.dropped)
    return SupervisedData(tuple(made), tuple(texts), tally.report(path))


def split_texts(data: SplitData, read: Callable[[str], SupervisedData], seed: int) -> Split[SupervisedExample]:
    """The examples of ``data.train`` and those held out, each file read by ``read``.

    Raises UserError where no row is left to train on.
    """

    def parts(path: str) -> tuple[Sequence[SupervisedExample], Sequence[str], str]:
        found = read(path)
        return found.examples, found.texts, found.report.describe()

    return read_split(data, parts, seed, _prompt_of)


def _prompt_of(example: SupervisedExample) -> Sequence[int]:
    """The tokens before the first label; of a document, which has no prompt, all."""
    first = example.loss_mask.index(True)
    return example.tokens[:first] if first > 1 else example.tokens


def describe_split(split: Split[SupervisedExample], eval_every: int) -> str:
    """How many texts are held out, and when their loss is measured, for the screen before training."""
    if not split.heldout:
        return f"{split.describe()}; data.heldout or data.heldout_fraction gives a held-out loss"
    labels = sum(sum(e.loss_mask) for e in split.heldout)
    between = f", every {eval_every} steps" if eval_every else ""
    return f"{split.describe()}; loss of its {labels:,} labels before the first step{between} and after the last"


def _but_first(mask: list[bool]) -> list[bool]:
    return [False, *mask[1:]] if mask else []


def _cut(
    tokens: list[int], mask: list[bool], max_length: int, truncate: Cut, bos_id: int | None
) -> tuple[list[int], list[bool]] | None:
    """At most ``max_length`` tokens including a label, or None."""
    if truncate == "drop":
        return None
    if truncate == "reply":
        return (tokens[:max_length], mask[:max_length]) if any(mask[:max_length]) else None
    reply = next(i for i in range(len(mask) - 1, -1, -1) if not mask[i]) + 1  # where the last run of labels starts
    room = max_length - (len(tokens) - reply)
    if room < 1:
        return None
    places = tokens_to_keep(tokens[:reply], room, "left", bos_id)
    places += range(reply, len(tokens))
    return [tokens[i] for i in places], _but_first([mask[i] for i in places])
