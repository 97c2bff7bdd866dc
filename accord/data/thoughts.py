"""Thoughts: what a model writes before its answer, in a key of the message or between two markers at its start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.control_tokens import ControlTokens

MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"))
KEYS = ("reasoning_content", "reasoning", "thinking")


def opened_at_end(prompt: str) -> str:
    """The marker that a rendered prompt ends with, which opens the thought of the reply; empty where there is none."""
    return next((start for start, _ in MARKERS if prompt.rstrip().endswith(start)), "")


def escape_reply(controls: ControlTokens, text: str, opened: str = "") -> str:
    """An assistant's content, escaped; the markers of a thought at its start are its structure and stay.

    ``opened``: the marker that the template writes before the reply.
    """
    body = text.lstrip()
    space = text[: len(text) - len(body)]
    for start, end in MARKERS:
        written = start if body.startswith(start) else ""
        if not written and opened != start:
            continue
        thought, found, answer = body[len(written) :].partition(end)
        if written or found:
            return space + written + controls.escape(thought) + found + controls.escape(answer)
    return controls.escape(text)


def thought_of(message: Mapping[str, Any]) -> str:
    """The thought of an assistant's message, without markers; empty where it has none."""
    for key in KEYS:
        if isinstance(message.get(key), str) and message[key].strip():
            return str(message[key]).strip()
    body = str(message.get("content") or "").lstrip()
    for start, end in MARKERS:
        if body.startswith(start) and end in body:
            return body[len(start) :].partition(end)[0].strip()
    return ""
