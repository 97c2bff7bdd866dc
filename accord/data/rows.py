"""Fields of rows, checked; every error names file and row."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Union

from accord.data.messages import ROLES as ROLES
from accord.data.messages import checked_message, message_text, template_inputs
from accord.data.turns import Message as Message  # readers of rows take it from here
from accord.data.turns import Turns
from accord.errors import UserError
from accord.io.readers import json_kind

Row = Mapping[str, Any]
Prompt = Union[str, Sequence[Message]]  # noqa: UP007  (evaluated at run time)
"""Plain text, or the turns so far."""
Reply = Union[str, Message]  # noqa: UP007  (evaluated at run time)
"""Plain text, or an assistant's message with more than text, as with tool calls."""

MAX_MARGIN = 1e6
"""By how much a chosen reply is preferred: more would overflow in float32 losses long before it means anything."""
MAX_WEIGHT = 1e6
"""Of one row, relative to 1."""
# Other names of these fields, too different for a spelling guess.
SYNONYMS = {
    "prompt": ("instruction", "question", "query", "input"),
    "completion": ("response", "output", "answer", "reply", "target"),
    "messages": ("conversation", "conversations", "dialogue", "chat"),
    "chosen": ("preferred", "winner", "accepted", "better"),
    "rejected": ("dispreferred", "loser", "worse"),
    "text": ("content", "document"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What was read of a file, and what was dropped or truncated."""

    rows: int  # rows read
    tokens: int  # of the rows used, after truncation
    truncated_prompts: int
    truncated_replies: int  # without their end token
    dropped: Mapping[str, int]  # rows by reason
    retokenized: int = 0  # rows whose prompt and reply were tokenized separately, since they would share a token
    recognized: str = ""
    """The format of the rows and the columns that are not used, as a sentence."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Further counts, by what they count."""

    @property
    def used(self) -> int:
        """Rows that were not dropped."""
        return self.rows - sum(self.dropped.values())

    def describe(self) -> str:
        """One or two plain sentences.

        >>> Report(5, 60, 1, 0, {"empty reply": 2}).describe()
        'Used 3 of 5 rows, 60 tokens. Dropped: empty reply 2; prompts truncated: 1.'
        """
        notes = []
        if self.dropped:
            notes.append("dropped: " + ", ".join(f"{reason} {n}" for reason, n in sorted(self.dropped.items())))
        counts = {
            "prompts truncated": self.truncated_prompts,
            "replies truncated": self.truncated_replies,
            "tokenized separately from the prompt": self.retokenized,
            **self.notes,
        }
        notes.extend(f"{name}: {count}" for name, count in counts.items() if count)
        known = f"{self.recognized} " if self.recognized else ""
        first = f"{known}Used {self.used} of {self.rows} rows, {self.tokens:,} tokens."
        text = "; ".join(notes)
        return f"{first} {text[0].upper()}{text[1:]}." if text else first


@dataclass(slots=True)
class Tally:
    """Running counts for a report."""

    rows: int = 0
    tokens: int = 0
    truncated_prompts: int = 0
    truncated_replies: int = 0
    remnants: int = 0
    """Rows whose prompt lost more than three quarters of its tokens."""
    dropped: Counter[str] = field(default_factory=Counter)
    retokenized: int = 0
    recognized: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Further counts, by what they count."""

    def add_formats(self, recognized: str, dropped: Mapping[str, int]) -> None:
        """Takes what the reader of the file's format found: its sentence, and the rows that it left out."""
        self.recognized = recognized
        self.dropped.update(dropped)
        self.rows += sum(dropped.values())

    def report(self, path: str | Path) -> Report:
        """The finished report; UserError where no row is left."""
        made = Report(
            self.rows,
            self.tokens,
            self.truncated_prompts,
            self.truncated_replies,
            MappingProxyType(dict(self.dropped)),
            self.retokenized,
            self.recognized,
            MappingProxyType(dict(self.notes)),
        )
        room = (
            "model.max_length bounds a prompt and its reply together (model.max_prompt_length a prompt alone); raise it, or"
            " lower max_new_tokens."
        )
        if not made.used:
            advice = f" {room}" if self.dropped["prompt too long"] else ""
            raise UserError(f"{path}: no row is usable. {made.describe()}{advice}")
        if 2 * self.remnants > made.used:
            raise UserError(f"{path}: most prompts would lose more than three quarters of their tokens: {room}")
        return made

    def cut_prompt(self, lost: int, length: int) -> None:
        """Counts a prompt that lost ``lost`` tokens of its content, and has ``length`` left."""
        self.truncated_prompts += lost > 0
        self.remnants += lost > 3 * length


@dataclass(frozen=True, slots=True)
class Where:
    """A row's place, for messages."""

    path: str
    row: int

    def error(self, text: str) -> UserError:
        return UserError(f"{self.path}, row {self.row}: {text}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Prefixes a UserError raised in the block with the place."""
        try:
            yield
        except UserError as error:
            raise self.error(str(error)) from None


# ------------------------------------------------------------------ fields
def require(row: Row, key: str, where: Where) -> Any:
    """``row[key]``; raises UserError where it is missing or null, with the key that was probably meant."""
    if row.get(key) is not None:
        return row[key]
    if key in row:
        raise where.error(f"{key!r} is null")
    raise where.error(f"no {key!r}{_guess(row, key)}; it has {', '.join(map(repr, row)) or 'no keys'}")


def _guess(row: Row, key: str) -> str:
    near = [k for k in row if k.lower() in SYNONYMS.get(key, ())]
    others = [
        k for k in row if k not in SYNONYMS and not k.startswith(f"{key}_")
    ]  # prompt_id is not a misspelled prompt
    near += difflib.get_close_matches(key, others, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}? rename it to {key!r})" if near else ""


def text_field(row: Row, key: str, where: Where) -> str:
    """A string."""
    value = require(row, key, where)
    if not isinstance(value, str):
        raise where.error(f"{key!r} is a JSON {json_kind(value)}, expected a string")
    return value


def prompt_field(row: Row, key: str, where: Where) -> Prompt:
    """A string, or a list of messages; messages also where the row has something for the chat template besides."""
    value = require(row, key, where)
    if isinstance(value, str):
        with where.named():
            inputs = template_inputs(row)
        return Turns([{"role": "user", "content": value}], inputs) if inputs else value
    if not isinstance(value, list):
        raise where.error(f"{key!r} is a JSON {json_kind(value)}, expected text or a list of messages")
    return messages_field(row, key, where)


def messages_field(row: Row, key: str, where: Where) -> Turns:
    """A list of messages (``checked_message``), with what the row gives the chat template besides."""
    value = require(row, key, where)
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else f"a JSON {json_kind(value)}"
        raise where.error(f"{key!r} is {found}, expected a list of messages")
    with where.named():
        return Turns((checked_message(item, f"{key}[{i}]") for i, item in enumerate(value)), template_inputs(row))


def number_field(row: Row, key: str, where: Where, high: float, default: float = 0.0) -> float:
    """A number from 0 to ``high``, no boolean; ``default`` where it is missing or null."""
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise where.error(f"{key} {value!r:.40}, expected a number from 0 to {high:,.0f}")
    return float(value)


def reply_field(row: Row, key: str, where: Where) -> Reply:
    """A string, or a list of one assistant message."""
    value = require(row, key, where)
    if isinstance(value, str):
        return value
    return _one_reply(messages_field(row, key, where), key, where)


def _one_reply(messages: Sequence[Message], key: str, where: Where) -> Reply:
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(m["role"] for m in messages) or "nothing"
        raise where.error(f"{key!r} must end in one assistant message after the prompt; found {roles}")
    return message_text(messages[0]) if messages[0].keys() <= {"role", "content"} else messages[0]


def reply_text(reply: Reply) -> str:
    """The text of a reply, without its calls."""
    return reply if isinstance(reply, str) else message_text(reply)


def text_alone(reply: Reply, where: Where) -> str:
    """The text of a reply that is shown to people.  Raises UserError where it has tool calls, which they would not see."""
    if has_calls(reply):
        raise where.error("a reply has tool calls, which votes cannot hold; leave the row out")
    return reply_text(reply)


def is_empty(reply: Reply) -> bool:
    """Whether a reply has neither text nor calls."""
    return not reply_text(reply).strip() and not has_calls(reply)


def has_calls(reply: Reply) -> bool:
    """Whether a reply calls tools."""
    return not isinstance(reply, str) and bool(reply.get("tool_calls"))


def preference_fields(row: Row, where: Where) -> tuple[Prompt, Reply, Reply, float]:
    """(prompt, chosen, rejected, margin) of a row in any common format; the margin is 0 where there is none.

    Without "prompt", "chosen" and "rejected" hold the whole exchange, and their common start is the prompt.
    """
    margin = number_field(row, "margin", where, MAX_MARGIN)
    chosen, rejected = require(row, "chosen", where), require(row, "rejected", where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise where.error("one of 'chosen' and 'rejected' is a string and the other is not")
    if isinstance(chosen, str):
        if "prompt" in row or _guess(row, "prompt"):
            return prompt_field(row, "prompt", where), chosen, rejected, margin
        prompt = _common_text(chosen, rejected)
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :], margin
    return (*_chats(row, where), margin)


def soft_label(row: Row, where: Where) -> tuple[float, float]:
    """(label, weight) of a preference: the probability that chosen is preferred, 1/2 for a tie, and a factor of its loss.

    1 and 1 where they are missing.  Raises UserError for a margin beside a label below 1, which it contradicts.
    """
    label = number_field(row, "label", where, 1.0, default=1.0)
    weight = number_field(row, "weight", where, MAX_WEIGHT, default=1.0)
    if label < 1 and row.get("margin"):
        raise where.error(f"a margin of {row['margin']} beside a label of {label:g}; leave one of them out")
    return label, weight


def _chats(row: Row, where: Where) -> tuple[Prompt, Reply, Reply]:
    chosen, rejected = messages_field(row, "chosen", where), messages_field(row, "rejected", where)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prefix: Prompt = Turns(chosen[:shared], chosen.inputs)
    replies = [_one_reply(chat[shared:], key, where) for key, chat in (("chosen", chosen), ("rejected", rejected))]
    if not prefix or "prompt" in row:
        given = prompt_field(row, "prompt", where)
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        if not prefix:
            prefix = given
        elif list(prefix[-len(turns) :]) != turns:
            raise where.error("'prompt' differs from the turns that 'chosen' and 'rejected' share; leave it out")
    return prefix, replies[0], replies[1]


def _common_text(a: str, b: str) -> str:
    """The common start of two transcripts, up to where a reply can begin: after the last marker of an assistant turn, or
    else before the first word that differs."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared, turn = a[:length], "\n\nAssistant:"
    if turn in shared:
        return shared[: shared.rindex(turn) + len(turn)]
    return shared[: max((i for i, c in enumerate(shared) if c.isspace()), default=0)]
