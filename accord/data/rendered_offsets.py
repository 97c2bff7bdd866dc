"""Where the tokens of a privately spelled text stand in the rendered text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accord.data.control_tokens import Piece


def offsets_in_rendered(pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets in the private spelling of ``pieces`` as offsets in the rendered text; a unit's parts have the unit's."""
    if not offsets:
        return []
    starts = np.cumsum([0, *(len(piece.private) for piece in pieces)])
    sources = np.cumsum([0, *(len(piece.rendered) for piece in pieces)])
    units = np.array([piece.rendered != piece.private for piece in pieces])
    begin, end = np.array(offsets).T
    last = len(pieces) - 1
    n = np.searchsorted(starts[1:-1], begin, side="right")  # the piece in which a token begins
    in_unit = np.where(begin < starts[n + 1], sources[n], sources[n + 1])
    first = np.where(units[n], in_unit, sources[n] + begin - starts[n])
    n = np.minimum(np.searchsorted(starts[1:], end, side="left"), last)  # the piece in which it ends
    stop = np.maximum(first, np.where(units[n], sources[n + 1], sources[n] + end - starts[n]))
    return list(zip(first.tolist(), stop.tolist(), strict=True))
