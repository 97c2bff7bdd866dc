"""Rows with one reply to learn: conversations, prompt and completion, instructions, plain text."""

from __future__ import annotations

from functools import partial

from accord.data.formats.format import Format, present, replaced, without_nulls
from accord.data.formats.instructions import ALPACA, DOLLY, QUESTIONS, Instruction, best_match
from accord.data.formats.turns import (
    as_turns,
    is_transcript,
    is_turns,
    require_reply,
    transcript_turns,
    with_system,
)
from accord.data.rows import Row, Where, text_field

CONVERSATIONS = ("messages", "conversations", "conversation")
REPLIES = ("response", "output", "answer", "reply")


def conversation(row: Row) -> Format | None:
    """Turns with roles, as OpenAI's and TRL's ``messages`` or ShareGPT's ``conversations``."""
    for key in CONVERSATIONS:
        if is_turns(row.get(key)):
            if key == "messages":
                return _MESSAGES
            if present(row, "chosen", "rejected"):  # LLaMA-Factory's preferences: the reply is in neither
                continue
            system = ("system",) if present(row, "system") else ()
            return Format("ShareGPT", (*system, key), partial(_sharegpt, key))
    return None


def prompt_completion(row: Row, chat: bool) -> Format | None:
    """TRL's columns, or ``prompt`` beside a reply of another name."""
    if not present(row, "prompt"):
        return None
    if present(row, "completion"):
        return _CHAT_PAIR if chat else _PLAIN_PAIR
    for key in REPLIES:
        if present(row, key):
            return Format("prompt and reply", ("prompt", key), partial(_completion, key, chat))
    return None


def instruction(row: Row) -> Format | None:
    """Alpaca, Dolly, and questions with answers."""
    family = best_match(row, (ALPACA, DOLLY, *QUESTIONS))
    if family is None:
        return None
    return Format(family.name, family.columns(row), partial(_instruction, family), _joined(family, row))


def text(row: Row) -> Format | None:
    """Plain text, learned as a whole."""
    return _TEXT if present(row, "text") and not present(row, "prompt") and not present(row, "completion") else None


def _joined(family: Instruction, row: Row) -> str:
    return f"{family.input} follows {family.prompt} after an empty line" if present(row, family.input) else ""


def _messages(row: Row, where: Where) -> list[Row]:
    turns = as_turns(row["messages"], "messages", where)
    require_reply(turns, "messages", where)
    row = without_nulls(row)
    return [row if turns is row["messages"] else {**row, "messages": turns}]


def _sharegpt(key: str, row: Row, where: Where) -> list[Row]:
    turns = as_turns(row[key], key, where)
    require_reply(turns, key, where)
    return [replaced(row, (key, "system"), messages=with_system(row.get("system"), turns))]


def _completion(key: str, chat: bool, row: Row, where: Where) -> list[Row]:
    reply, prompt = row[key], as_turns(row["prompt"], "prompt", where)
    reply = as_turns([reply] if isinstance(reply, dict) else reply, key, where)
    if chat and isinstance(reply, str) and is_transcript(prompt):
        prompt, reply = transcript_prompt(prompt), reply.strip()
    if key == "completion" and prompt is row["prompt"] and reply is row[key]:
        return [without_nulls(row)]
    return [replaced(row, ("prompt", key), prompt=prompt, completion=reply)]


def transcript_prompt(text: str) -> list[dict[str, str]]:
    """The turns of a transcript that a reply is to follow, without the empty turn that the reply fills."""
    turns = transcript_turns(text)
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _instruction(family: Instruction, row: Row, where: Where) -> list[Row]:
    turns = family.turns(row, where)
    return [replaced(row, family.columns(row), prompt=turns, completion=text_field(row, family.reply, where))]


def _unchanged(row: Row, where: Where) -> list[Row]:
    return [without_nulls(row)]


_MESSAGES = Format("conversation", ("messages",), _messages)
_CHAT_PAIR, _PLAIN_PAIR = (
    Format("prompt and completion", ("prompt", "completion"), partial(_completion, "completion", chat))
    for chat in (True, False)
)
_TEXT = Format("plain text", ("text",), _unchanged, plain=True)
