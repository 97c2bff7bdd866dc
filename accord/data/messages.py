"""Messages as they stand in data files, checked: turns with text, tool calls and thoughts, and what their template reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from accord.data.thoughts import KEYS as THOUGHTS
from accord.data.turns import NOTHING, Message, inputs_of
from accord.errors import UserError
from accord.io.readers import json_kind, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
RESERVED = ("messages", "add_generation_prompt", "tools", "documents")
"""Names that ``chat_template_kwargs`` cannot give another meaning."""


def checked_message(item: Any, name: str) -> dict[str, Any]:
    """A message with text for content (a list of text parts is joined), and without null keys.

    An assistant's may have tool calls or a thought in place of content; arguments of calls that are JSON text become objects,
    which is what chat templates expect.  Raises UserError that begins with ``name``.
    """
    if not isinstance(item, dict):
        raise UserError(f'{name} is a JSON {json_kind(item)}, expected {{"role": …, "content": …}}')
    message = {key: value for key, value in item.items() if value is not None or key == "content"}
    if "role" not in message:
        raise UserError(f"{name} has no 'role'; it has {', '.join(map(repr, item)) or 'no keys'}")
    role = message["role"]
    if not isinstance(role, str):
        raise UserError(f"{name}: the role is a JSON {json_kind(role)}, expected a string")
    if role not in ROLES and (near := difflib.get_close_matches(role.lower(), ROLES, n=1, cutoff=0.7)):
        raise UserError(f"{name}: role {role!r}; did you mean {near[0]!r}?")
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], name)
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
    may_lack = role == "assistant" and any(message.get(key) for key in ("tool_calls", *THOUGHTS))
    if message.get("content") is None and may_lack:
        return message if "content" in message else {**message, "content": None}
    if "content" not in message:
        raise UserError(f"{name} has no 'content'; it has {', '.join(map(repr, item)) or 'no keys'}")
    return {**message, "content": _text(message["content"], name)}


def _text(content: Any, name: str) -> str:
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise UserError(f"{name}: the content is a JSON {json_kind(content)}, expected text")
    return content


def _calls(value: Any, name: str) -> list[Any]:
    calls = parse_json(value, f"{name}: tool_calls") if isinstance(value, str) else value
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UserError(f"{name}: tool_calls is a JSON {json_kind(calls)}, expected a list of calls")
    return [_call(without_nulls(call)) for call in calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object, where they are the JSON text of one."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(text := function.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            return call
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


def without_nulls(value: Any) -> Any:
    """A JSON value whose objects have no null values: files with columns fill in the keys of other rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def template_inputs(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a row gives its chat template besides messages: ``tools`` and ``documents`` (lists, or the JSON text of
    lists), and the names in ``chat_template_kwargs``.  Raises UserError."""
    found: dict[str, Any] = {}
    for key in ("tools", "documents"):
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            value = parse_json(value, repr(key))
        if value in (None, "", []):
            continue
        if not isinstance(value, list) or not all(isinstance(item, (dict, str)) for item in value):
            raise UserError(f"{key!r} is a JSON {json_kind(value)}, expected a list of objects, or its JSON text")
        found[key] = without_nulls(value)
    more = row.get("chat_template_kwargs")
    if isinstance(more, str) and more.strip():
        more = parse_json(more, "'chat_template_kwargs'")
    if more in (None, "", {}):
        return found or NOTHING
    if not isinstance(more, dict):
        raise UserError(f"'chat_template_kwargs' is a JSON {json_kind(more)}, expected an object")
    if wrong := [name for name in more if name in RESERVED]:
        raise UserError(f"'chat_template_kwargs' has {wrong[0]!r}, which is a column of its own")
    return found | {name: value for name, value in more.items() if value is not None}


def template_columns(prompt: object) -> dict[str, Any]:
    """What a prompt gives its chat template besides messages, as columns of a row (``template_inputs`` reads them)."""
    inputs = inputs_of(prompt)
    columns = {key: inputs[key] for key in ("tools", "documents") if key in inputs}
    more = {key: value for key, value in inputs.items() if key not in columns}
    return columns | ({"chat_template_kwargs": more} if more else {})


def with_texts(messages: Iterable[Message]) -> tuple[dict[str, Any], ...]:
    """Messages for people, each with text for content: of one that only calls tools it is empty."""
    return tuple({**message, "content": message_text(message)} for message in messages)


def message_text(message: Message) -> str:
    """The message's content; empty where it has only calls or a thought."""
    return str(message.get("content") or "")
