"""Messages to tokens: the one place that builds what policies, references and reward models read.

The boundary between prompt and reply is that of the prompt's own ids, since those are what a model is given to
continue.  Where prompt and reply joined would share a token, the reply is tokenized separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.data.chat_template import render_template
from accord.data.rows import Message, Prompt
from accord.data.tokenizer import Tokenizer
from accord.errors import UserError

Offsets = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A conversation, up to its last label."""

    ids: list[int]
    loss_mask: list[bool]  # true on the assistant's tokens, end tokens included
    apart: bool  # whether a boundary had to be tokenized separately


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and one reply to it."""

    prompt: list[int]
    reply: list[int]  # the end token included
    apart: bool


# ------------------------------------------------------------------ text
def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The chat template's text.  Raises UserError where there is no template or it refuses the messages."""
    if tokenizer.chat_template is None:
        raise UserError(
            "these are chat messages and the tokenizer has no chat template; add chat_template.jinja to its folder, or "
            "use plain text"
        )
    return render_template(tokenizer.chat_template, tokenizer.specials, messages, add_generation_prompt)


# ------------------------------------------------------------------ tokens
def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> ChatTokens:
    """A conversation with labels on what the assistant wrote, each turn up to and including its end token.

    What the template writes before and after a turn is no label; what follows the last label is left out.
    Raises UserError where there is no assistant turn, or where the template does not show the prompt of a turn as the
    start of the whole (it rewrites history), or writes no end token.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise UserError("no assistant message, so nothing to learn from")
    full = render(tokenizer, messages, False)
    heads = [render(tokenizer, messages[:i], True) for i in turns]
    for i, head in zip(turns, heads, strict=True):
        _require_prefix(full, head, f"message {i}")
    ids, offsets = _encode(tokenizer, full)
    asked = [_encode(tokenizer, head)[0] for head in heads]
    ends = []
    for head, following in zip(heads, [*map(len, heads[1:]), len(full)], strict=True):
        end = _end(tokenizer, ids, offsets, len(head))
        if end is None or offsets[end][1] > following:
            raise _no_end(tokenizer)
        ends.append(end)
    if not all(_starts_with(ids, head) for head in asked):
        return _pieces(tokenizer, full, [(len(head), offsets[end][1]) for head, end in zip(heads, ends, strict=True)])
    mask = [False] * (ends[-1] + 1)
    for head_ids, end in zip(asked, ends, strict=True):
        mask[len(head_ids) : end + 1] = [True] * (end + 1 - len(head_ids))
    return ChatTokens(ids[: len(mask)], mask, apart=False)


def _pieces(tokenizer: Tokenizer, full: str, spans: Sequence[tuple[int, int]]) -> ChatTokens:
    """The conversation cut at the turns' boundaries, every piece tokenized separately."""
    ids: list[int] = []
    mask: list[bool] = []
    done = 0
    for start, end in spans:
        between = _encode(tokenizer, full[:start])[0] if done == 0 else tokenizer.encode(full[done:start])
        reply = tokenizer.encode(full[start:end])
        ids += between + reply
        mask += [False] * len(between) + [True] * len(reply)
        done = end
    return ChatTokens(ids, mask, apart=True)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """What a model is given to continue.  Plain text becomes a user message where there is a chat template."""
    return _encode(tokenizer, prompt_text(tokenizer, prompt))[0]


def reply_ids(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> list[int]:
    """The reply's tokens, its end token last; after ``prompt_ids`` they are what training sees."""
    return exchange(tokenizer, prompt, reply).reply


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as a model reads it, the opening of the assistant's turn included.

    Raises UserError where the messages end with the assistant's.
    """
    if isinstance(prompt, str):
        return prompt if tokenizer.chat_template is None else render(tokenizer, _as_messages(prompt), True)
    if prompt and prompt[-1]["role"] == "assistant":
        raise UserError("the prompt ends with an assistant message; it must end where the assistant is to speak")
    return render(tokenizer, prompt, True)


def exchange(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> Exchange:
    """A prompt and a reply to it, as tokens.

    Raises UserError where the template does not show the prompt as the start of the whole, or writes no end token.
    """
    head = prompt_text(tokenizer, prompt)
    chat = tokenizer.chat_template is not None
    turn = {"role": "assistant", "content": reply}
    full = render(tokenizer, [*_as_messages(prompt), turn], False) if chat else head + reply
    _require_prefix(full, head, "the reply")
    asked = _encode(tokenizer, head)[0]
    ids, offsets = _encode(tokenizer, full)
    end = _end(tokenizer, ids, offsets, len(head))
    if end is None and chat:
        raise _no_end(tokenizer)
    stop = len(full) if end is None else offsets[end][1]
    apart = not _starts_with(ids, asked)
    tokens = tokenizer.encode(full[len(head) : stop]) if apart else ids[len(asked) : None if end is None else end + 1]
    return Exchange(asked, tokens if end is not None else [*tokens, tokenizer.eos_id], apart)


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text of its own, without turns: BOS first where the tokenizer's makers put one, the end token last."""
    bos = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.adds_bos else []
    ids = tokenizer.encode(text)
    return [*(bos if ids[:1] != bos else []), *ids, *([] if ids[-1:] == [tokenizer.eos_id] else [tokenizer.eos_id])]


def _as_messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], Offsets]:
    """Ids and offsets with at most one BOS in front: plain text gets the one its makers put there, a template writes
    its own, and a doubled one is removed."""
    ids, offsets = tokenizer.encode_with_offsets(text)
    bos = tokenizer.bos_id
    if bos is None:
        return ids, offsets
    if tokenizer.chat_template is None and tokenizer.adds_bos and ids[:1] != [bos]:
        return [bos, *ids], [(0, 0), *offsets]
    while ids[:2] == [bos, bos]:
        ids, offsets = ids[1:], offsets[1:]
    return ids, offsets


def _end(tokenizer: Tokenizer, ids: Sequence[int], offsets: Offsets, start: int) -> int | None:
    """The index of the first end token at or after character ``start``."""
    return next((k for k, i in enumerate(ids) if i == tokenizer.eos_id and offsets[k][0] >= start), None)


def _starts_with(ids: Sequence[int], head: Sequence[int]) -> bool:
    return list(ids[: len(head)]) == list(head)


def _require_prefix(full: str, head: str, what: str) -> None:
    if not full.startswith(head):
        raise UserError(
            f"the chat template writes the text before {what} in another way once the reply is there, so its place "
            "cannot be found; use a template whose generation prompt is the start of the assistant's turn"
        )


def _no_end(tokenizer: Tokenizer) -> UserError:
    end = tokenizer.token(tokenizer.eos_id)
    return UserError(
        f"the chat template writes no end token ({end!r}) after the assistant's words, so a model could not learn to "
        "stop; add it to the template"
    )
