"""The text of sampled tokens, as it stands after their prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from accord.data.tokenizer import Tokenizer

CONTEXT = 4
"""Tokens before a reply that decide how its first token is spelled; one would do, but some spell nothing."""


def reply_text(tokenizer: Tokenizer, prompt: Sequence[int], reply: Sequence[int]) -> str:
    """What the reply adds to the text of its prompt, without special tokens.

    Decoded alone, a first token would lose its space (Metaspace), or its mark of a word that goes on (WordPiece).
    """
    if tokenizer.decodes_alone:
        return tokenizer.decode(reply)
    before = _context(tokenizer, prompt)
    written = [i for i in reply if i not in tokenizer.special_ids]
    start, whole = (
        tokenizer.decode(before, skip_special=False),
        tokenizer.decode([*before, *written], skip_special=False),
    )
    return whole[len(start) :] if before and whole.startswith(start) else tokenizer.decode(reply)


def sampled_text(tokenizer: Tokenizer, prompt: Sequence[int], reply: Sequence[int]) -> str:
    """``reply_text`` as the content of a turn: templates set spaces around it, so those at its ends are removed.

    Without a template the spaces belong to the text.
    """
    text = reply_text(tokenizer, prompt, reply)
    return text if tokenizer.chat_template is None else text.strip()


def streamed(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The reply's text in parts, as its tokens come; together they are its ``reply_text``.

    A part that a later token may change is held back: an incomplete character takes several tokens, and some decoders
    join words after the fact.
    """
    reply: list[int] = []
    shown = text = ""
    for token in tokens:
        reply.append(token)
        text = reply_text(tokenizer, prompt, reply)
        settled = text if tokenizer.decodes_alone else text.rstrip(" ")
        if not settled.endswith("\ufffd") and settled.startswith(shown):
            yield settled[len(shown) :]
            shown = settled
    if text.startswith(shown):
        yield text[len(shown) :]
    else:
        yield f"\n{text}"


def _context(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt; after its last control token where a tokenizer starts again after those.

    They begin at the start of a character: where it takes several tokens, a part of it would spoil what follows.
    """
    start = max(len(prompt) - CONTEXT, 0)
    while start and tokenizer.decode(prompt[start:], skip_special=False).startswith("\ufffd"):
        start = max(start - CONTEXT, 0)
    last = list(prompt[start:])
    if tokenizer.starts_again_after_special:
        cut = next((k for k in range(len(last), 0, -1) if last[k - 1] in tokenizer.special_ids), 0)
        last = last[cut:]
    return last
