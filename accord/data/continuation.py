"""The tokens of the second part of a text whose first part is tokenized already, so that together they spell the text.

Tokenized alone, a part may get a space that the text does not have (Metaspace, Prepend, ``add_prefix_space``), or start a
new word (WordPiece).
"""

from __future__ import annotations

from collections.abc import Sequence

from accord.data.tokenizer import Tokenizer

Offsets = list[tuple[int, int]]


def continuation(
    tokenizer: Tokenizer, before: Sequence[int], rendered: str, start: int
) -> tuple[list[int], Offsets, bool]:
    """Ids of ``rendered[start:]`` with their offsets in it, and whether ``before`` followed by them spells the text.

    ``before``: the ids of ``rendered[:start]``.  The part is tokenized alone where that is exact, as TRL does; otherwise it
    has the tokens of the whole text, with the one that spans ``start`` cut there.
    """
    ids, offsets = tokenizer.encode_rendered(rendered)
    text = tokenizer.decode(ids)
    alone, places = tokenizer.encode_rendered(rendered[start:])
    shifted = [(a + start, b + start) for a, b in places]
    if tokenizer.decode([*before, *alone]) == text:
        return alone, shifted, True
    first = next((k for k, (_, end) in enumerate(offsets) if end > start), len(ids))
    cut, spans = ids[first:], offsets[first:]
    if cut and spans[0][0] < start:
        stop = spans[0][1]
        pieces = _end_of_token(tokenizer, cut[0], tokenizer.controls.unescape(rendered[start:stop]))
        if pieces is None:
            return alone, shifted, False
        cut, spans = [*pieces, *cut[1:]], [(start, stop)] * len(pieces) + spans[1:]
    if tokenizer.decode([*before, *cut]) == text:
        return cut, spans, True
    return alone, shifted, False


def _end_of_token(tokenizer: Tokenizer, token_id: int, text: str) -> list[int] | None:
    """The tokens of the end of a token, which stands for ``text``; None where the vocabulary has none for it."""
    token = tokenizer.token(token_id)
    rest = token[-min(len(text.encode()) if tokenizer.is_byte_level else len(text), len(token)) :]
    prefix = tokenizer.continuing_prefix
    ids: list[int] = []
    while rest:
        length = next((n for n in range(len(rest), 0, -1) if tokenizer.find(prefix + rest[:n]) is not None), 0)
        found = tokenizer.find(prefix + rest[:length]) if length else None
        if found is None:
            return None
        ids.append(found)
        rest = rest[length:]
    return ids
