"""A conversation as its chat template writes it, with content escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from accord.data.chat_template import render_template
from accord.data.control_tokens import MARK
from accord.data.rows import ROLES
from accord.data.thoughts import escape_reply
from accord.data.tokenizer import Tokenizer
from accord.data.turns import Message, inputs_of
from accord.errors import UserError

_OPEN, _CLOSE = 0x108000, 0x10C000
MARKS = re.compile(f"{MARK}[{chr(_OPEN)}-{chr(0x10FFFD)}]")
"""Around the content of a message, to find where a template writes it."""
TRAINING_KEYS = ("weight", "train")
"""Keys of a message that are about training and not part of the conversation."""


class Conversation:
    """Messages, escaped once, to be rendered up to any turn."""

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
        """Raises UserError where there is no chat template, or a role spells a part of a control token."""
        if tokenizer.chat_template is None:
            raise UserError(
                "these are chat messages, but the tokenizer has no chat template; add chat_template.jinja to its folder, or "
                "use plain text"
            )
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template
        self._messages = [_escaped(tokenizer, message) for message in messages]
        self._inputs: Mapping[str, Any] = tokenizer.controls.escape_all(dict(inputs_of(messages)))

    def render(self, length: int, add_generation_prompt: bool) -> str:
        """The first ``length`` messages as escaped text.

        Where the template rejects a tool call with no content, or with arguments that are objects, it gets empty content,
        or arguments as JSON text.  Raises UserError where it rejects them in any form.
        """
        return self._render(self._messages[:length], add_generation_prompt)

    def content_spans(self, full: str) -> list[tuple[int, int, int]]:
        """Where each message's content stands in ``full``, all messages rendered: (start, end, index of the message).

        Content is found by marks around it; where a template reads the content itself, so that the marks change what it
        writes, by looking for the content after the one before.
        """
        marked = [_marked(message, i) for i, message in enumerate(self._messages)]
        try:
            text = self._render(marked, False)
        except UserError:
            text = ""
        if MARKS.sub("", text) == full:
            return _spans_of_marks(text)
        found, done = [], 0
        for i, message in enumerate(self._messages):
            content = message.get("content")
            core = content.strip() if isinstance(content, str) else ""
            start = full.find(core, done) if core else -1
            if start >= 0:
                done = start + len(core)
                found.append((start, done, i))
        return found

    def render_without_calls(self, index: int) -> str | None:
        """All messages, but without the tool calls of one; None where the template rejects that."""
        bare = {key: value for key, value in self._messages[index].items() if key != "tool_calls"}
        try:
            return self._render([*self._messages[:index], bare, *self._messages[index + 1 :]], False)
        except UserError:
            return None

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        specials = self._tokenizer.specials
        try:
            return render_template(self._template, specials, messages, add_generation_prompt, self._inputs)
        except UserError:
            for form in (
                _with_empty_content,
                _with_arguments_as_text,
                lambda m: _with_arguments_as_text(_with_empty_content(m)),
            ):
                other = [form(message) for message in messages]
                if other != messages:
                    try:
                        return render_template(self._template, specials, other, add_generation_prompt, self._inputs)
                    except UserError:
                        continue
            raise


def _escaped(tokenizer: Tokenizer, message: Message) -> dict[str, Any]:
    controls = tokenizer.controls
    role, content = message["role"], message.get("content")
    if not isinstance(role, str):
        raise UserError(f"the role {role!r:.40} of a message is no text; use one of {', '.join(ROLES)}")
    if role not in ROLES and controls.escape(role) != role:
        raise UserError(f"the role {role!r} is a part of a control token; use one of {', '.join(ROLES)}")
    rest = {k: v for k, v in message.items() if k not in ("role", "content", *TRAINING_KEYS)}
    made: dict[str, Any] = {"role": role, **controls.escape_all(rest)}
    if "content" not in message:
        return made
    if not isinstance(content, str):
        return {**made, "content": controls.escape_all(content)}
    reply = role == "assistant"
    return {
        **made,
        "content": escape_reply(controls, content, tokenizer.opened_thought) if reply else controls.escape(content),
    }


def _marked(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message with marks around its content, inside the spaces at its ends, which templates may trim."""
    content = message.get("content")
    if not isinstance(content, str) or not (core := content.strip()):
        return message
    before, after = content.split(core, 1)
    n = index % (_CLOSE - _OPEN)
    return {**message, "content": f"{before}{MARK}{chr(_OPEN + n)}{core}{MARK}{chr(_CLOSE + n)}{after}"}


def _spans_of_marks(text: str) -> list[tuple[int, int, int]]:
    found, opened, removed = [], {}, 0
    for match in MARKS.finditer(text):
        at = match.start() - removed
        removed += len(match[0])
        n = ord(match[0][1])
        if n < _CLOSE:
            opened[n - _OPEN] = at
        elif n - _CLOSE in opened:
            found.append((opened.pop(n - _CLOSE), at, n - _CLOSE))
    return found


def _with_empty_content(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": ""} if message.get("content") is None else message


def _with_arguments_as_text(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(calls := message.get("tool_calls"), list):
        return message
    return {**message, "tool_calls": [_call_as_text(call) for call in calls]}


def _call_as_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), (dict, list)):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
