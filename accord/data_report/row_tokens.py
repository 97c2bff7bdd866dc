"""A row's tokens and labels, by the functions that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from accord.data.chat import Exchange, chat_tokens, document_ids, exchange, prompt_ids, trained_turns
from accord.data.rows import Reply, reply_text
from accord.data.sampled_ids import COLUMN, SampledIds
from accord.data.tokenizer import Tokenizer
from accord.data_report.reading import Reading


@dataclass(frozen=True, slots=True)
class Text:
    """One sequence that a model reads: a row's text, or a prompt with one of two replies."""

    ids: Sequence[int]
    labels: Sequence[bool]
    """Which tokens are learned or, of a preference, compared."""
    split: bool = False
    """Whether prompt and reply were tokenized separately."""
    lost_thoughts: int = 0
    drifted: bool = False
    """Whether it has sampled tokens, which are not those that its text gives."""

    @property
    def prompt_length(self) -> int:
        """Tokens before the first label; all of a prompt's."""
        return next((i for i, label in enumerate(self.labels) if label), len(self.ids))


def texts_of(tokenizer: Tokenizer, row: Reading) -> list[Text]:
    """The sequences of a row; none where there is nothing to learn.  Raises UserError where the template rejects it."""
    if row.messages is not None:
        learned = [i for i in trained_turns(row.messages) if i >= row.first_reply]
        if not learned and any(m["role"] == "assistant" for m in row.messages):
            return []
        chat = chat_tokens(tokenizer, row.messages, learned or None)
        return [Text(chat.ids, _but_first(chat.loss_mask), chat.split, chat.lost_thoughts)]
    if row.document is not None:
        ids = document_ids(tokenizer, row.document)
        return [Text(ids, _but_first([True] * len(ids)))]
    assert row.prompt is not None  # what a Reading holds
    if row.kind == "prompts":
        ids = prompt_ids(tokenizer, row.prompt)
        return [Text(ids, [False] * len(ids))]
    replies = row.learned_replies(tokenizer.chat_template is not None)
    made = [exchange(tokenizer, row.prompt, reply) for reply in replies]
    if row.sampled:
        keys = ("chosen", "rejected") if row.kind == "preferences" else ("completion",)
        return [_sampled(tokenizer, row, *each) for each in zip(keys, made, replies, strict=True)]
    return [
        Text(
            [*e.prompt, *e.reply],
            _but_first([False] * len(e.prompt) + [True] * len(e.reply)),
            e.split,
            e.lost_thoughts,
        )
        for e in made
    ]


def _sampled(tokenizer: Tokenizer, row: Reading, key: str, made: Exchange, reply: Reply) -> Text:
    """A reply with the tokens that were sampled, where they are this tokenizer's and spell its text."""
    ids = _sampled_ids(tokenizer).of({COLUMN: row.sampled}, key, made.prompt, reply_text(reply), row.where)
    learned = made.reply if ids is None else list(ids)
    labels = [False] * len(made.prompt) + [True] * len(learned)
    split = made.split and ids is None
    return Text([*made.prompt, *learned], labels, split, made.lost_thoughts, drifted=learned != made.reply)


@lru_cache(maxsize=4)
def _sampled_ids(tokenizer: Tokenizer) -> SampledIds:
    return SampledIds(tokenizer)


def _but_first(mask: list[bool]) -> list[bool]:
    return [False, *mask[1:]] if mask else []
