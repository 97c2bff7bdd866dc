"""A conversation together with what its chat template reads besides the messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

Message = Mapping[str, Any]
"""One turn: {"role": …, "content": …}; further keys reach the chat template."""
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Turns(list[Message]):
    """Messages with ``inputs`` of the chat template: tools, documents and the row's ``chat_template_kwargs``.

    Wherever messages are read, these are messages.  A slice or a sum has no inputs: ``Turns(some, inputs)`` adds them.
    """

    def __init__(self, messages: Iterable[Message] = (), inputs: Mapping[str, Any] = NOTHING) -> None:
        super().__init__(messages)
        self.inputs = inputs


def inputs_of(prompt: object) -> Mapping[str, Any]:
    """What the template reads besides the messages of a prompt; empty for plain text and plain lists."""
    return prompt.inputs if isinstance(prompt, Turns) else NOTHING


def as_turns(prompt: str | Iterable[Message], *more: Message) -> Turns:
    """A prompt as messages, with further messages after it; plain text is a user message."""
    messages: Iterable[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Turns([*messages, *more], inputs_of(prompt))
