"""Texts for supervised training: demonstrations, conversations or documents, as tokens with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal

from accord.config.common import SplitData
from accord.data.chat import chat_tokens, document_ids, exchange
from accord.data.heldout import Split, read_split
from accord.data.prompts import is_blank, plain_text, tokens_to_keep
from accord.data.rows import (
    Message,
    Report,
    Row,
    Tally,
    Where,
    messages_field,
    prompt_field,
    reply_field,
    require,
    text_field,
)
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError
from accord.io.readers import read_jsonl

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
    path: str | Path, tokenizer: Tokenizer, max_length: int, truncate: Cut = "reply", limit: int = 0
) -> SupervisedData:
    """Reads ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}`` rows.

    Labels are the completion, every assistant turn, or the whole text, each up to and including the end token; a
    truncated reply has no end token.  ``limit`` > 0 reads the first rows only.  Raises UserError, naming file and row.
    """
    if max_length < 2:
        raise UserError(f"max_length: {max_length}, expected at least 2")
    tally = Tally()
    examples, texts = [], []
    for number, row in islice(read_jsonl(path), limit or None):
        where = Where(str(path), number)
        tally.rows += 1
        tokens, mask, split, text = _tokens(row, tokenizer, where)
        if not tokens:
            tally.dropped["empty reply"] += 1
            continue
        if len(tokens) > max_length:
            cut = _cut(tokens, mask, max_length, truncate, tokenizer.bos_id)
            if cut is None:
                tally.dropped["too long" if truncate == "drop" else "no room for a reply"] += 1
                continue
            tokens, mask = cut
            tally.truncated_prompts += truncate == "prompt"
            tally.truncated_replies += truncate == "reply"
        tally.retokenized += split
        tally.tokens += len(tokens)
        examples.append(SupervisedExample(tuple(tokens), tuple(mask)))
        texts.append(text)
    return SupervisedData(tuple(examples), tuple(texts), tally.report(path))


def split_texts(data: SplitData, read: Callable[[str], SupervisedData], seed: int) -> Split[SupervisedExample]:
    """The examples of ``data.train`` and those held out, each file read by ``read``.

    Raises UserError where no row is left to train on.
    """

    def parts(path: str) -> tuple[Sequence[SupervisedExample], Sequence[str], str]:
        found = read(path)
        return found.examples, found.texts, found.report.describe()

    return read_split(data, parts, seed)


def describe_split(split: Split[SupervisedExample], eval_every: int) -> str:
    """How many texts are held out, and when their loss is measured, for the screen before training."""
    if not split.heldout:
        return f"{split.describe()}; data.heldout or data.heldout_fraction gives a held-out loss"
    labels = sum(sum(e.loss_mask) for e in split.heldout)
    between = f", every {eval_every} steps" if eval_every else ""
    return f"{split.describe()}; loss of its {labels:,} labels before the first step{between} and after the last"


def opening_text(messages: Sequence[Message]) -> str:
    """The turns before the first reply as plain text, by which a conversation is held out; all turns where none is there."""
    return plain_text(list(takewhile(lambda m: m["role"] != "assistant", messages)) or messages)


def _tokens(row: Row, tokenizer: Tokenizer, where: Where) -> tuple[list[int], list[bool], bool, str]:
    """(tokens, loss mask, whether tokenized separately, text of the prompt); no tokens where there is no reply."""
    if "messages" in row:
        messages = messages_field(row, "messages", where)
        if any(m["role"] == "assistant" and not m["content"].strip() and "tool_calls" not in m for m in messages):
            return [], [], False, ""
        with where.named():
            chat = chat_tokens(tokenizer, messages)
        return chat.ids, _but_first(chat.loss_mask), chat.split, opening_text(messages)
    if "prompt" not in row and "completion" not in row and "text" in row:
        text = text_field(row, "text", where)
        ids = document_ids(tokenizer, text) if text.strip() else []
        return ids, _but_first([True] * len(ids)), False, text
    if "prompt" not in row and "completion" not in row:
        require(row, "messages" if _looks_like_chat(row) else "prompt", where)
    prompt, completion = prompt_field(row, "prompt", where), reply_field(row, "completion", where)
    if not completion.strip():
        return [], [], False, ""
    with where.named():
        turn = exchange(tokenizer, prompt, completion)
    mask = [False] * len(turn.prompt) + [True] * len(turn.reply)
    text = completion if is_blank(prompt) else plain_text(prompt)
    return turn.prompt + turn.reply, _but_first(mask), turn.split, text


def _looks_like_chat(row: Row) -> bool:
    return any(isinstance(value, list) for value in row.values())


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
    assert places is not None  # only "drop" gives None
    places += range(reply, len(tokens))
    return [tokens[i] for i in places], _but_first([mask[i] for i in places])
