"""A row of any kind as its parts: prompt, replies, conversation or document, and each text with who says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from accord.data.formats.rows import recognize
from accord.data.messages import message_text
from accord.data.prompts import plain_text
from accord.data.repeated_prompt import without_repeated_prompt
from accord.data.rows import (
    Message,
    Prompt,
    Reply,
    Row,
    Where,
    messages_field,
    preference_fields,
    prompt_field,
    reply_field,
    reply_text,
    soft_label,
    text_field,
)
from accord.data.sampled_ids import COLUMN
from accord.data.turns import Turns, as_turns

Kind = Literal["sft", "preferences", "prompts"]
NOWHERE = Where("", 0)
KINDS: tuple[Kind, ...] = ("preferences", "sft", "prompts")
"""In the order in which they are tried for the first row."""


@dataclass(frozen=True, slots=True)
class Said:
    """A text of a row's content and whose it is: a message's role, or ``document``."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a row holds.  Exactly one of ``messages``, ``document`` and ``prompt`` is there."""

    kind: Kind
    messages: Turns | None = None
    first_reply: int = 0
    """Of a conversation: the first message that may be learned."""
    document: str | None = None
    prompt: Prompt | None = None
    replies: tuple[Reply, ...] = ()
    sampled: Mapping[str, Any] = field(default_factory=dict)
    """The ids of sampled replies by key, with the digest of their tokenizer."""
    where: Where = NOWHERE
    """For messages about these ids."""
    label: float = 1.0
    """Of a preference: the probability that the first reply is preferred."""

    def turns(self) -> Turns:
        """The messages of the prompt, or the whole conversation; none of a document."""
        if self.messages is not None:
            return self.messages
        return Turns() if self.prompt is None else as_turns(self.prompt)

    def said(self) -> list[Said]:
        """All texts of the content, in order."""
        if self.document is not None:
            return [Said("document", self.document)]
        turns = [Said(m["role"], message_text(m)) for m in self.turns()]
        return turns + [Said("assistant", reply_text(reply)) for reply in self.replies]

    def learned_replies(self, chat: bool) -> tuple[Reply, ...]:
        """The replies as training reads them: those of a pair without the prompt that both repeat."""
        if self.kind != "preferences" or self.prompt is None:
            return self.replies
        return without_repeated_prompt(self.prompt, self.replies, chat) or self.replies

    def prompt_text(self) -> str:
        """The prompt as plain text; of a conversation the turns before the first reply; empty for a document."""
        turns: list[Message] = list(self.turns())
        if self.messages is not None:
            turns = turns[: next((i for i, m in enumerate(turns) if m["role"] == "assistant"), len(turns))]
        return plain_text(turns) if turns else ""


def kind_of(row: Row) -> Kind | None:
    """What kind of rows a file holds, by its first row; None where it has no known format."""
    return next((kind for kind in KINDS if recognize(row, kind)), None)


def read_row(row: Row, kind: Kind, where: Where) -> Reading:
    """The parts of a row in one of accord's shapes.  Raises UserError, naming the row, where they are not there."""
    if kind == "preferences":
        prompt, chosen, rejected, _ = preference_fields(row, where)
        return Reading(
            kind,
            prompt=prompt,
            replies=(chosen, rejected),
            sampled=_sampled(row),
            where=where,
            label=soft_label(row, where)[0],
        )
    if kind == "prompts":
        return Reading(kind, prompt=prompt_field(row, "prompt", where))
    if "messages" in row:
        return Reading(kind, messages=messages_field(row, "messages", where))
    if "prompt" not in row and "completion" not in row and "text" in row:
        return Reading(kind, document=text_field(row, "text", where))
    prompt = prompt_field(row, "prompt", where)
    if isinstance(row.get("completion"), list) and len(row["completion"]) > 1:
        turns = as_turns(prompt)
        return Reading(
            kind, messages=as_turns(turns, *messages_field(row, "completion", where)), first_reply=len(turns)
        )
    replies = (reply_field(row, "completion", where),)
    return Reading(kind, prompt=prompt, replies=replies, sampled=_sampled(row), where=where)


def _sampled(row: Row) -> Mapping[str, Any]:
    column = row.get(COLUMN)
    return column if isinstance(column, Mapping) else {}
