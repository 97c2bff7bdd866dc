"""Messages to tokens: the only place that builds the inputs of policies, references and reward models.

Control tokens come from the chat template and never from content (``accord.data.control_tokens``).  A reply begins after
the ids of the prompt alone, since a model continues those.  Where prompt and reply would share a token when joined, the
reply is tokenized separately, in such a way that both together spell the text (``accord.data.continuation``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from accord.data.continuation import continuation
from accord.data.rendering import Conversation
from accord.data.rows import Message, Prompt, Reply, reply_text
from accord.data.thoughts import thought_of
from accord.data.tokenizer import Tokenizer
from accord.data.turns import as_turns
from accord.errors import UserError

Offsets = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """The tokens of a conversation, up to its last label."""

    ids: list[int]
    loss_mask: list[bool]  # true on the assistant's tokens, including end tokens
    split: bool  # whether prompt and reply were tokenized separately
    lost_thoughts: int = 0  # learned turns whose thoughts the template leaves out
    rendered: str = field(default="", compare=False)  # the text, with content escaped
    offsets: Offsets = field(default_factory=list, compare=False)  # of each token in ``rendered``


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and one reply to it."""

    prompt: list[int]
    reply: list[int]  # including the end token
    split: bool  # whether prompt and reply were tokenized separately
    lost_thoughts: int = 0  # assistant turns whose thoughts the template leaves out
    rendered: str = field(default="", compare=False)  # the text, with content escaped
    offsets: Offsets = field(default_factory=list, compare=False)  # of each token of both in ``rendered``


# ------------------------------------------------------------------ text
def render(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The text of messages in the chat template.  Raises UserError where there is no template or it rejects the messages."""
    text = Conversation(tokenizer, messages).render(len(messages), add_generation_prompt)
    return tokenizer.controls.unescape(text)


# ------------------------------------------------------------------ tokens
def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message], turns: Sequence[int] | None = None) -> ChatTokens:
    """A conversation with labels on the assistant's turns, each up to and including its end token.

    ``turns``: the indices of the messages to learn; None for all that ``trained_turns`` names.  Template text before and
    after a turn is not a label; tokens after the last label are dropped.  Raises UserError
    where there is no assistant turn, where the rendered conversation does not start with the prompt of each turn (the
    template rewrites history), where the template writes no end token, or where it leaves out a tool call.
    """
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [i for i in replies if i in (trained_turns(messages) if turns is None else turns)]
    if not learned:
        raise UserError("no assistant message, so there is nothing to train on")
    chat = Conversation(tokenizer, messages)
    full = chat.render(len(messages), False)
    heads = [chat.render(i, True) for i in replies]
    for i, head in zip(replies, heads, strict=True):
        _require_prefix(full, head, f"message {i}")
    _require_calls(chat, messages, full)
    ids, offsets = _encode(tokenizer, full)
    asked = [_encode_start(tokenizer, head, ids, offsets)[0] for head in heads]
    spans = []
    following = [*map(len, heads[1:]), len(full)]
    for i, head, limit in zip(replies, heads, following, strict=True):
        end = _end(tokenizer, ids, offsets, len(head))
        if end is None or offsets[end][1] > limit:
            raise _no_end(tokenizer)
        spans.append((i, len(head), end))
    thoughts = [thought_of(messages[i]) for i in replies]
    rendered = [tokenizer.controls.unescape(full[start : offsets[end][1]]) for _, start, end in spans]
    pairs = zip(replies, thoughts, rendered, strict=True)
    lost = sum(bool(t) and t not in text for i, t, text in pairs if i in learned)
    if not all(_starts_with(ids, head) for head in asked):
        parts = [(start, offsets[end][1]) for i, start, end in spans if i in learned]
        return _tokenize_separately(tokenizer, full, parts, lost)
    last = max(end for i, _, end in spans if i in learned)
    mask = [False] * (last + 1)
    for head_ids, (i, _, end) in zip(asked, spans, strict=True):
        if i in learned:
            mask[len(head_ids) : end + 1] = [True] * (end + 1 - len(head_ids))
    return ChatTokens(ids[: len(mask)], mask, False, lost, full, offsets[: len(mask)])


def whole_chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation as the template writes it, to its last character."""
    return tokenizer.encode_rendered(Conversation(tokenizer, messages).render(len(messages), False))[0]


def closing_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that the chat template writes after the end token of a last reply (a line end, say); none without a template."""
    if tokenizer.chat_template is None:
        return []
    ids = whole_chat_ids(tokenizer, [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "reply"}])
    return ids[len(ids) - ids[::-1].index(tokenizer.eos_id) :] if tokenizer.eos_id in ids else []


def trained_turns(messages: Sequence[Message]) -> list[int]:
    """The assistant's messages to learn: those without ``weight: 0`` or ``train: false``.

    Raises UserError for another weight than 0 and 1.
    """
    found = []
    for i, message in enumerate(messages):
        weight, train = message.get("weight", 1), message.get("train", True)
        if weight not in (0, 1):
            raise UserError(f"message {i} has weight {weight!r:.40}; a turn's weight is 0 or 1")
        if not isinstance(train, bool):
            raise UserError(f"message {i} has train {train!r:.40}; expected true or false")
        if message["role"] == "assistant" and weight and train:
            found.append(i)
    return found


def _tokenize_separately(
    tokenizer: Tokenizer, full: str, spans: Sequence[tuple[int, int]], lost_thoughts: int
) -> ChatTokens:
    """The conversation cut at the boundaries of the turns, each piece tokenized separately."""
    ids: list[int] = []
    mask: list[bool] = []
    offsets: Offsets = []
    done = 0
    for start, end in spans:
        for first, stop, label in ((done, start, False), (start, end, True)):
            if first:
                some, places, _ = continuation(tokenizer, ids, full[:stop], first)
            else:
                some, places = _encode(tokenizer, full[:stop])
            ids += some
            mask += [label] * len(some)
            offsets += places
        done = end
    return ChatTokens(ids, mask, True, lost_thoughts, full, offsets)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids that a model continues.  Plain text becomes a user message where there is a chat template."""
    return prompt_tokens(tokenizer, prompt)[1]


def prompt_tokens(tokenizer: Tokenizer, prompt: Prompt) -> tuple[str, list[int], Offsets]:
    """The rendered prompt with content escaped, its ids, and their offsets in it."""
    rendered = prompt_rendered(tokenizer, prompt)
    return rendered, *_encode(tokenizer, rendered)


def prompt_to_continue(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """``prompt_ids`` of a prompt that a reply is sampled to.  Raises UserError where it has no tokens."""
    if not (ids := prompt_ids(tokenizer, prompt)):
        cause = "write at least one character"
        if tokenizer.chat_template is not None:
            cause = "the chat template writes nothing for it; correct the template"
        raise UserError(f"the prompt has no tokens to continue: {cause}.")
    return ids


def reply_ids(tokenizer: Tokenizer, prompt: Prompt, reply: Reply) -> list[int]:
    """The ids of a reply including its end token; training reads ``prompt_ids`` followed by these."""
    return exchange(tokenizer, prompt, reply).reply


def prompt_rendered(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as a model reads it, including the opening of the assistant's turn, with content escaped.

    Raises UserError where the last message is the assistant's.
    """
    if isinstance(prompt, str) and tokenizer.chat_template is None:
        return tokenizer.controls.escape(prompt)
    messages = as_turns(prompt)
    if messages and messages[-1]["role"] == "assistant":
        raise UserError("the prompt ends with an assistant message; it must end where the assistant replies")
    return Conversation(tokenizer, messages).render(len(messages), True)


def exchange(tokenizer: Tokenizer, prompt: Prompt, reply: Reply) -> Exchange:
    """A prompt and a reply to it, as tokens.

    Raises UserError where the rendered exchange does not start with the prompt, has no end token, or lacks a tool call.
    """
    head = prompt_rendered(tokenizer, prompt)
    chat = tokenizer.chat_template is not None
    lost = 0
    if chat:
        messages = as_turns(prompt, as_message(reply))
        conversation = Conversation(tokenizer, messages)
        full = conversation.render(len(messages), False)
        _require_calls(conversation, messages, full)
        thought = thought_of(messages[-1])
        lost = int(bool(thought) and thought not in tokenizer.controls.unescape(full[len(head) :]))
    else:
        full = head + tokenizer.controls.escape(_plain_reply(reply))
    _require_prefix(full, head, "the reply")
    ids, offsets = _encode(tokenizer, full)
    asked, before = _encode_start(tokenizer, head, ids, offsets)
    end = _end(tokenizer, ids, offsets, len(head))
    if end is None and chat:
        raise _no_end(tokenizer)
    stop = len(full) if end is None else offsets[end][1]
    split = not _starts_with(ids, asked)
    if split:
        tokens, places, _ = continuation(tokenizer, asked, full[:stop], len(head))
    else:
        part = slice(len(asked), None if end is None else end + 1)
        tokens, places = ids[part], offsets[part]
    if end is None:
        tokens, places = [*tokens, tokenizer.eos_id], [*places, (len(full), len(full))]
    return Exchange(asked, tokens, split, lost, full, [*before, *places])


def as_message(reply: Reply) -> Message:
    """A reply as the assistant's message."""
    return {"role": "assistant", "content": reply} if isinstance(reply, str) else reply


def _plain_reply(reply: Reply) -> str:
    """The text of a reply to a model without a chat template.  Raises UserError where it has more than text."""
    if isinstance(reply, str):
        return reply
    more = [key for key in ("tool_calls",) if reply.get(key)]
    if more:
        raise UserError(f"the reply has {more[0]}, but the tokenizer has no chat template that could write them")
    return reply_text(reply)


def _require_calls(chat: Conversation, messages: Sequence[Message], full: str) -> None:
    """Raises UserError where the template writes nothing for the tool calls of a message."""
    for i, message in enumerate(messages):
        if message.get("tool_calls") and chat.render_without_calls(i) == full:
            raise UserError(
                f"the chat template writes nothing for the tool calls of message {i}, so they would not be learned; use a"
                " template with tool calls, or leave the row out"
            )


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a plain document, with BOS where the tokenizer adds one, and the end token last."""
    bos = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.adds_bos else []
    ids = tokenizer.encode_content(text)
    return [*(bos if ids[:1] != bos else []), *ids, *([] if ids[-1:] == [tokenizer.eos_id] else [tokenizer.eos_id])]


def _encode(tokenizer: Tokenizer, rendered: str) -> tuple[list[int], Offsets]:
    """Ids and offsets with at most one BOS: plain text gets one where the tokenizer adds one, a template writes its own,
    and a duplicate is removed."""
    ids, offsets = tokenizer.encode_rendered(rendered)
    bos = tokenizer.bos_id
    if bos is None:
        return ids, offsets
    if tokenizer.chat_template is None and tokenizer.adds_bos and ids[:1] != [bos]:
        return [bos, *ids], [(0, 0), *offsets]
    while ids[:2] == [bos, bos]:
        ids, offsets = ids[1:], offsets[1:]
    return ids, offsets


def _encode_start(tokenizer: Tokenizer, head: str, ids: Sequence[int], offsets: Offsets) -> tuple[list[int], Offsets]:
    """``_encode`` of the start of a text whose ids are known.

    What stands before a control token has the same ids in both, so that only the rest is tokenized again.
    """
    after = bisect_right(offsets, len(head), key=lambda span: span[1])
    numbers = tokenizer.controls.numbers
    last = next((k for k in range(after - 1, -1, -1) if ids[k] in numbers and offsets[k][1] > offsets[k][0]), 0)
    if last == 0:
        return _encode(tokenizer, head)
    start = offsets[last][0]
    rest, places = tokenizer.encode_rendered(head[start:])
    return [*ids[:last], *rest], [*offsets[:last], *((a + start, b + start) for a, b in places)]


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
