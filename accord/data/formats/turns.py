"""Conversations of other programs as messages: ShareGPT's keys and roles, JSON in text, transcripts with speakers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from accord.data.rows import ROLES, Where
from accord.io.readers import parse_json, shorten

ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant",
    "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Other programs' names of roles."""
_AS_JSON = re.compile(r"\s{,20}\[\s*\{\s*\"(role|from|content|value)\"")
_AS_PYTHON = re.compile(r"\s{,20}\[\s*\{\s*'(role|from|content|value)'")
_START = 64
"""Characters in which the first turn of a list begins."""
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def as_turns(value: Any, key: str, where: Where) -> Any:
    """A list of turns as messages with our roles; another value, and what stands in no turn, unchanged.

    Turns are ``{"role", "content"}`` or ShareGPT's ``{"from", "value"}``, perhaps as JSON text.  Raises UserError for
    turns in Python's notation, which CSV files of pandas hold.
    """
    if isinstance(value, str):
        if "{" not in value[:_START]:
            return value
        if _AS_PYTHON.match(value):
            raise where.error(f"{key!r} holds messages as Python prints them; save the file as JSON Lines or Parquet")
        if not _AS_JSON.match(value):
            return value
        with where.named():
            value = parse_json(value, repr(key))
    if not isinstance(value, list):
        return value
    return (
        value if all(map(_is_plain, value)) else [_message(turn, f"{key}[{i}]", where) for i, turn in enumerate(value)]
    )


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns, perhaps as JSON text."""
    if value is None:
        return False
    if isinstance(value, str):
        return "{" in value[:_START] and bool(_AS_JSON.match(value) or _AS_PYTHON.match(value))
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _is_plain(turn: Any) -> bool:
    """Whether a turn needs no change: it has one of our roles, and no key is null."""
    return isinstance(turn, dict) and turn.get("role") in ROLES and None not in turn.values()


def _message(turn: Any, name: str, where: Where) -> Any:
    if not isinstance(turn, dict):
        return turn
    made = {key: value for key, value in turn.items() if value is not None or key == "content"}
    if "role" not in made and "from" in made:
        made["role"] = made.pop("from")
    if "content" not in made and "value" in made:
        made["content"] = made.pop("value")
    role = made.get("role")
    if not isinstance(role, str) or role in ROLES or role.lower() not in ROLE_NAMES:
        return made
    if role == "function_call":
        made = {**made, "content": "", "tool_calls": _calls(made.get("content"), name, where)}
    return {**made, "role": ROLE_NAMES[role.lower()]}


def _calls(text: Any, name: str, where: Where) -> list[dict[str, Any]]:
    """The calls of ShareGPT's turn ``function_call``: JSON with name and arguments, or a list of such."""
    if isinstance(text, str):
        with where.named():
            text = parse_json(text, f"{name}, a function_call")
    calls = text if isinstance(text, list) else [text]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise where.error(
            f'{name}: a function_call holds {shorten(text, 60)}, expected JSON with "name" and "arguments"'
        )
    return [{"type": "function", "function": {"arguments": {}, **call}} for call in calls]


def require_reply(messages: Sequence[Any], key: str, where: Where) -> None:
    """Raises UserError, naming the roles, where no turn is the assistant's."""
    roles = [
        role if isinstance(role := turn.get("role"), str) else repr(role)
        for turn in messages
        if isinstance(turn, Mapping)
    ]
    if "assistant" not in roles and len(roles) == len(messages):
        found = ", ".join(dict.fromkeys(shorten(role, 40) for role in roles))
        remedy = "" if set(roles) <= set(ROLES) else "; rename them to user and assistant"
        raise where.error(f"no assistant message in {key!r}, whose roles are {found or 'none'}{remedy}")


def is_transcript(text: Any) -> bool:
    """Whether a text is a dialogue of HH-RLHF: turns that begin with ``Human:`` and ``Assistant:``."""
    return isinstance(text, str) and text[:40].lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript_turns(text: str) -> list[dict[str, str]]:
    """The turns of a transcript, without space around them; turns of one speaker that follow each other are joined.

    >>> transcript_turns("\\n\\nHuman: hi\\n\\nAssistant: hello")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    """
    turns: list[dict[str, str]] = []
    parts = _SPEAKER.split(text)[1:]
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
        else:
            turns.append({"role": role, "content": said.strip()})
    return turns


def with_system(system: Any, messages: list[Any]) -> list[Any]:
    """The messages after a system turn, where there is a text for one and they do not begin with one."""
    if not (isinstance(system, str) and system.strip()):
        return messages
    first = messages[0] if messages else None
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]
