"""Messages to tokens: the only place that builds the inputs of policies, references and reward models.

A reply begins after the ids of the prompt alone, since a model continues those.  Where prompt and reply would share a
token when joined, the reply is tokenized separately.
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
    """The tokens of a conversation, up to its last label."""

    ids: list[int]
    loss_mask: list[bool]  # true on the assistant's tokens, including end tokens
    split: bool  # whether prompt and reply were tokenized separately


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and one reply to it."""

    prompt: list[int]
    reply: list[int]  # including the end token
    split: bool  # whether prompt and reply were tokenized separately


# ------------------------------------------------------------------ text
def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The text of messages in the chat template.  Raises UserError where there is no template or it rejects the messages."""
    if tokenizer.chat_template is None:
        raise UserError(
            "these are chat messages, but the tokenizer has no chat template; add chat_template.jinja to its folder, or "
            "use plain text"
        )
    return render_template(tokenizer.chat_template, tokenizer.specials, messages, add_generation_prompt)


# ------------------------------------------------------------------ tokens
def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> ChatTokens:
    """A conversation with labels on the assistant's turns, each up to and including its end token.

    Template text before and after a turn is not a label; tokens after the last label are dropped.  Raises UserError
    where there is no assistant turn, where the rendered conversation does not start with the prompt of each turn (the
    template rewrites history), or where the template writes no end token.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise UserError("no assistant message, so there is nothing to train on")
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
        return _tokenize_separately(
            tokenizer, full, [(len(head), offsets[end][1]) for head, end in zip(heads, ends, strict=True)]
        )
    mask = [False] * (ends[-1] + 1)
    for head_ids, end in zip(asked, ends, strict=True):
        mask[len(head_ids) : end + 1] = [True] * (end + 1 - len(head_ids))
    return ChatTokens(ids[: len(mask)], mask, split=False)


def _tokenize_separately(tokenizer: Tokenizer, full: str, spans: Sequence[tuple[int, int]]) -> ChatTokens:
    """The conversation cut at the boundaries of the turns, each piece tokenized separately."""
    ids: list[int] = []
    mask: list[bool] = []
    done = 0
    for start, end in spans:
        between = _encode(tokenizer, full[:start])[0] if done == 0 else tokenizer.encode(full[done:start])
        reply = tokenizer.encode(full[start:end])
        ids += between + reply
        mask += [False] * len(between) + [True] * len(reply)
        done = end
    return ChatTokens(ids, mask, split=True)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids that a model continues.  Plain text becomes a user message where there is a chat template."""
    return _encode(tokenizer, prompt_text(tokenizer, prompt))[0]


def prompt_to_continue(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """``prompt_ids`` of a prompt that a reply is sampled to.  Raises UserError where it has no tokens."""
    if not (ids := prompt_ids(tokenizer, prompt)):
        cause = "write at least one character"
        if tokenizer.chat_template is not None:
            cause = "the chat template writes nothing for it; correct the template"
        raise UserError(f"the prompt has no tokens to continue: {cause}.")
    return ids


def reply_ids(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> list[int]:
    """The ids of a reply including its end token; training reads ``prompt_ids`` followed by these."""
    return exchange(tokenizer, prompt, reply).reply


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as a model reads it, including the opening of the assistant's turn.

    Raises UserError where the last message is the assistant's.
    """
    if isinstance(prompt, str):
        return prompt if tokenizer.chat_template is None else render(tokenizer, _as_messages(prompt), True)
    if prompt and prompt[-1]["role"] == "assistant":
        raise UserError("the prompt ends with an assistant message; it must end where the assistant replies")
    return render(tokenizer, prompt, True)


def exchange(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> Exchange:
    """A prompt and a reply to it, as tokens.

    Raises UserError where the rendered exchange does not start with the prompt, or has no end token.
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
    split = not _starts_with(ids, asked)
    tokens = tokenizer.encode(full[len(head) : stop]) if split else ids[len(asked) : None if end is None else end + 1]
    return Exchange(asked, tokens if end is not None else [*tokens, tokenizer.eos_id], split)


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a plain document, with BOS where the tokenizer adds one, and the end token last."""
    bos = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.adds_bos else []
    ids = tokenizer.encode(text)
    return [*(bos if ids[:1] != bos else []), *ids, *([] if ids[-1:] == [tokenizer.eos_id] else [tokenizer.eos_id])]


def _as_messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], Offsets]:
    """Ids and offsets with at most one BOS: plain text gets one where the tokenizer adds one, a template writes its own,
    and a duplicate is removed."""
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
            f"the chat template renders the text before {what} in another way once the reply is there, so the reply "
            "cannot be located; use a template whose generation prompt is the start of the assistant's turn"
        )


def _no_end(tokenizer: Tokenizer) -> UserError:
    end = tokenizer.token(tokenizer.eos_id)
    return UserError(
        f"the chat template writes no end token ({end!r}) after the assistant's reply, so a model could not learn to "
        "stop; add it to the template"
    )
