"""One row of demonstrations as the texts that are learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from accord.config.common import Examples
from accord.data.chat import as_message, chat_tokens, document_ids, exchange, trained_turns
from accord.data.prompts import is_blank, plain_text
from accord.data.rows import (
    Message,
    Row,
    Where,
    is_empty,
    messages_field,
    prompt_field,
    reply_field,
    reply_text,
    require,
    text_field,
)
from accord.data.sampled_ids import SampledIds
from accord.data.text_notes import LOST, SAMPLED, TextNotes
from accord.data.tokenizer import Tokenizer
from accord.data.turns import Turns, as_turns


@dataclass(frozen=True, slots=True)
class Text:
    """A text to learn."""

    ids: list[int]
    mask: list[bool]  # true on labels
    split: bool  # whether prompt and reply were tokenized separately
    prompt: str  # its prompt as plain text, by which it is held out; of a text without a prompt the text itself
    turns: Turns = field(default_factory=Turns)
    learned: tuple[int, ...] = ()
    """The conversation, and the replies in it that are learned; of a document none."""


def row_texts(row: Row, where: Where, notes: TextNotes, sampled: SampledIds, examples: Examples) -> list[Text]:
    """The texts of a row ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``: one, or with ``examples="turn"`` one
    for each reply of a conversation; none where a reply is empty or no reply is to be learned.

    A completion with token ids as they were sampled (``accord.data.sampled_ids``) has those.  Raises UserError naming file
    and row.
    """
    tokenizer = notes.tokenizer
    if "messages" in row:
        messages = messages_field(row, "messages", where)
        with where.named():
            return _chats(messages, trained_turns(messages), tokenizer, notes, examples)
    if "prompt" not in row and "completion" not in row and "text" in row:
        text = text_field(row, "text", where)
        ids = document_ids(tokenizer, text) if text.strip() else []
        notes.add_row(text)
        return [Text(ids, [True] * len(ids), False, text)] if ids else []
    if "prompt" not in row and "completion" not in row:
        require(row, "messages" if any(isinstance(value, list) for value in row.values()) else "prompt", where)
    prompt = prompt_field(row, "prompt", where)
    if isinstance(row.get("completion"), list) and len(row["completion"]) > 1:
        completion = messages_field(row, "completion", where)
        turns = as_turns(prompt, *completion)
        learned = [i for i in trained_turns(turns) if i >= len(turns) - len(completion)]
        with where.named():
            return _chats(turns, learned, tokenizer, notes, examples)
    reply = reply_field(row, "completion", where)
    if is_empty(reply):
        return []
    with where.named():
        made = exchange(tokenizer, prompt, reply)
    notes.add_row(prompt, {"role": "assistant", "content": reply} if isinstance(reply, str) else reply)
    notes.add(LOST, made.lost_thoughts)
    own = sampled.of(row, "completion", made.prompt, reply, where)
    learned = made.reply if own is None else list(own)
    notes.add(SAMPLED, learned != made.reply)
    mask = [False] * len(made.prompt) + [True] * len(learned)
    text = reply_text(reply) if is_blank(prompt) else plain_text(prompt)
    turns = as_turns(prompt, as_message(reply))
    return [Text(made.prompt + learned, mask, made.split and own is None, text, turns, (len(turns) - 1,))]


def opening_text(messages: Sequence[Message]) -> str:
    """The turns before the first reply as plain text, by which a conversation is held out; all turns where none is there."""
    return plain_text(list(takewhile(lambda m: m["role"] != "assistant", messages)) or messages)


def _chats(
    messages: Turns, learned: Sequence[int], tokenizer: Tokenizer, notes: TextNotes, examples: Examples
) -> list[Text]:
    replies = [m for m in messages if m["role"] == "assistant"]
    if any(is_empty(m) for m in replies) or (replies and not learned):
        return []
    notes.add_row(messages)
    chats = [(messages, tuple(learned))]
    if examples == "turn":
        chats = [(Turns(messages[: i + 1], messages.inputs), (i,)) for i in learned]
    made = [chat_tokens(tokenizer, turns, some or None) for turns, some in chats]
    notes.add(LOST, sum(chat.lost_thoughts for chat in made))
    opening = opening_text(messages)
    return [
        Text(chat.ids, chat.loss_mask, chat.split, opening, turns, some)
        for chat, (turns, some) in zip(made, chats, strict=True)
    ]
