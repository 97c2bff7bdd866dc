"""The tokens of a text, each with the place it has in the text, whether it is learned, and where it comes from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from accord.data.chat import Offsets, as_message, chat_tokens, exchange, prompt_tokens
from accord.data.rendering import Conversation
from accord.data.rows import Message, Prompt, Reply
from accord.data.tokenizer import Tokenizer
from accord.data.turns import as_turns

TEMPLATE = -1


@dataclass(frozen=True, slots=True)
class Trace:
    """A text as ``N`` tokens."""

    text: str
    ids: tuple[int, ...]
    labels: tuple[bool, ...]  # true on tokens that are learned
    spans: tuple[tuple[int, int], ...]  # of each token in ``text``; an end token that is added has an empty one
    origins: tuple[int, ...]  # the message whose content a token is from, by its index; TEMPLATE for the template's own


def trace_chat(tokenizer: Tokenizer, messages: Sequence[Message], turns: Sequence[int] | None = None) -> Trace:
    """A conversation as ``chat_tokens`` makes it."""
    made = chat_tokens(tokenizer, messages, turns)
    return _trace(tokenizer, messages, made.rendered, (made.ids, made.loss_mask, made.offsets))


def trace_exchange(tokenizer: Tokenizer, prompt: Prompt, reply: Reply) -> Trace:
    """A prompt with a reply as ``exchange`` makes them; the reply is learned."""
    made = exchange(tokenizer, prompt, reply)
    labels = [False] * len(made.prompt) + [True] * len(made.reply)
    messages = as_turns(prompt, as_message(reply))
    return _trace(tokenizer, messages, made.rendered, (made.prompt + made.reply, labels, made.offsets))


def trace_prompt(tokenizer: Tokenizer, prompt: Prompt) -> Trace:
    """A prompt as ``prompt_ids`` makes it; nothing is learned."""
    rendered, ids, offsets = prompt_tokens(tokenizer, prompt)
    return _trace(tokenizer, as_turns(prompt), rendered, (ids, [False] * len(ids), offsets))


def _trace(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    rendered: str,
    tokens: tuple[Sequence[int], Sequence[bool], Offsets],
) -> Trace:
    ids, labels, offsets = tokens
    controls = tokenizer.controls
    if tokenizer.chat_template is None:
        contents = [controls.escape(str(message.get("content") or "")) for message in messages]
        ends = [sum(map(len, contents[: i + 1])) for i in range(len(contents))]
        spans = [(end - len(content), end, i) for i, (content, end) in enumerate(zip(contents, ends, strict=True))]
    else:
        spans = Conversation(tokenizer, messages).content_spans(rendered)
    starts = [start for start, _, _ in spans]

    def origin(start: int, end: int) -> int:
        n = bisect_right(starts, max(start, end - 1)) - 1
        return spans[n][2] if n >= 0 and start < spans[n][1] and start < end else TEMPLATE

    places = controls.plain_offsets(rendered, offsets)
    return Trace(
        controls.unescape(rendered), tuple(ids), tuple(labels), tuple(places), tuple(origin(a, b) for a, b in offsets)
    )
