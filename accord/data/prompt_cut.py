"""Prompts that are too long: oldest whole turns go first, then a part of the last user's content.

What the template writes (headers, the opening of the reply) and the system turn stay, since a model without them reads
another kind of text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from accord.data.chat import ChatTokens, Offsets, chat_tokens, prompt_ids, prompt_tokens
from accord.data.rendering import Conversation
from accord.data.rows import Prompt
from accord.data.tokenizer import Tokenizer
from accord.data.turns import Turns, as_turns, inputs_of
from accord.errors import UserError

Side = Literal["left", "right", "drop"]
"""Where content that is too long is cut: at its start (keeping the end), at its end; or the row is dropped."""


LONGEST_WORD = 32
"""Tokens that are given up at most to end a cut between two words."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt's tokens within a limit."""

    ids: tuple[int, ...]
    turns: int = 0
    """Whole turns that were left out."""
    lost: int = 0
    """Tokens of content that were cut besides."""


def fit_prompt(tokenizer: Tokenizer, prompt: Prompt, ids: Sequence[int], limit: int, side: Side) -> FittedPrompt | None:
    """A prompt within ``limit`` tokens; ``ids`` are its ``prompt_ids``.  None where the row is to be dropped.

    That is where ``side`` says so, and where system turn and template alone are too long.
    """
    if len(ids) <= limit:
        return FittedPrompt(tuple(ids))
    if side == "drop":
        return None
    if tokenizer.chat_template is None:
        places = tokens_to_keep(ids, limit, side, tokenizer.bos_id)
        return FittedPrompt(tuple(ids[i] for i in places), lost=len(ids) - len(places))
    turns = as_turns(prompt)
    shorter, removed = _without_oldest(tokenizer, turns, limit)
    ids = prompt_ids(tokenizer, shorter) if removed else ids
    if len(ids) <= limit:
        return FittedPrompt(tuple(ids), removed)
    kept = _cut_content(tokenizer, shorter, len(ids) - limit, side)
    return None if kept is None else FittedPrompt(kept, removed, len(ids) - len(kept))


@dataclass(frozen=True, slots=True)
class FittedChat:
    """A conversation's tokens within a limit."""

    ids: list[int]
    mask: list[bool]  # true on labels
    turns: int
    """Whole turns that were left out."""
    lost: int
    """Tokens of content that were cut besides."""


def fit_chat(tokenizer: Tokenizer, turns: Turns, learned: Sequence[int], limit: int) -> FittedChat | None:
    """A conversation to learn within ``limit`` tokens, its last reply whole; ``learned`` are the indices of the replies.

    None where system turn, template and last reply alone are too long.
    """
    last = max(learned)

    def tokens(start: int) -> ChatTokens:
        removed = start - first
        return chat_tokens(tokenizer, _from_turn(turns, first, start), [i - removed for i in learned if i >= start])

    first, starts = _starts(turns, last)
    start = _earliest(starts or [first], lambda start: len(tokens(start).ids) <= limit)
    made = tokens(start)
    excess = len(made.ids) - limit
    if excess <= 0:
        return FittedChat(made.ids, made.loss_mask, start - first, 0)
    shorter = _from_turn(turns, first, start)
    text = made.rendered, made.offsets
    kept = _without_content(tokenizer, shorter, text, last - start + first, (excess, "left"))
    if kept is None:
        return None
    return FittedChat(
        [made.ids[k] for k in kept], [made.loss_mask[k] for k in kept], start - first, len(made.ids) - len(kept)
    )


def _without_oldest(tokenizer: Tokenizer, turns: Turns, limit: int) -> tuple[Turns, int]:
    """The conversation from the earliest user's turn with which it has at most ``limit`` tokens, after its system turns;
    from the last user's turn where none does.  Also how many turns that leaves out.
    """
    first, starts = _starts(turns, len(turns))
    if not starts:
        return turns, 0
    start = _earliest(starts, lambda start: len(prompt_ids(tokenizer, _from_turn(turns, first, start))) <= limit)
    return _from_turn(turns, first, start), start - first


def _starts(turns: Turns, before: int) -> tuple[int, list[int]]:
    """Where the system turns end, and the user's turns after the first turn, up to turn ``before``."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] not in ("system", "developer")), len(turns))
    return first, [i for i in range(first + 1, before) if turns[i]["role"] == "user"]


def _from_turn(turns: Turns, first: int, start: int) -> Turns:
    return Turns([*turns[:first], *turns[start:]], inputs_of(turns))


def _earliest(starts: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The first start that fits, or the last one; a template may reject what is left after one."""

    def accepted(start: int) -> bool:
        try:
            return fits(start)
        except UserError:
            return False

    return starts[min(bisect_left(starts, True, key=accepted), len(starts) - 1)]


def tokens_to_keep(ids: Sequence[int], limit: int, side: Side, bos_id: int | None) -> list[int]:
    """The indices of a plain text's tokens to keep, at most ``limit``.  A leading BOS is kept, since some models need it."""
    length = len(ids)
    if length <= limit:
        return list(range(length))
    if side == "right":
        return list(range(limit))
    first = [0] if limit > 1 and ids[0] == bos_id else []
    return [*first, *range(length - limit + len(first), length)]


def _cut_content(tokenizer: Tokenizer, turns: Turns, excess: int, side: Side) -> tuple[int, ...] | None:
    """The prompt's ids without ``excess`` tokens of the last user's content; None where it has not as many."""
    rendered, ids, offsets = prompt_tokens(tokenizer, turns)
    kept = _without_content(tokenizer, turns, (rendered, offsets), len(turns), (excess, side))
    return None if kept is None else tuple(ids[k] for k in kept)


def _without_content(
    tokenizer: Tokenizer, turns: Turns, text: tuple[str, Offsets], before: int, cut: tuple[int, Side]
) -> list[int] | None:
    """The places of the tokens to keep where the last user's content before turn ``before`` loses some, or a few more, so
    that no word is cut; None where the content has not as many.

    ``text``: the rendered text, and the places of its tokens in it.  ``cut``: how many tokens, and at which side.
    """
    (rendered, offsets), (excess, side) = text, cut
    user = max((i for i, turn in enumerate(turns[:before]) if turn["role"] == "user"), default=None)
    chat = Conversation(tokenizer, turns)
    full = chat.render(len(turns), False)
    spans = {i: (a, b) for a, b, i in chat.content_spans(full)} if rendered.startswith(full) else {}
    if user is None or user not in spans:
        return None
    start, end = spans[user]
    inside = [k for k, (a, b) in enumerate(offsets) if start <= a and b <= end and a < b]
    if len(inside) <= excess:
        return None
    more = range(excess, min(len(inside), excess + LONGEST_WORD))
    if side == "left":
        count = next((n for n in more if _is_boundary(rendered, offsets[inside[n]][0])), excess)
        removed = set(inside[:count])
    else:
        count = next((n for n in more if _is_boundary(rendered, offsets[inside[-n - 1]][1])), excess)
        removed = set(inside[len(inside) - count :])
    return [k for k in range(len(offsets)) if k not in removed]


def _is_boundary(text: str, at: int) -> bool:
    """Whether a word begins or ends at a place of a text."""
    return text[at - 1 : at].isspace() or text[at : at + 1].isspace()
