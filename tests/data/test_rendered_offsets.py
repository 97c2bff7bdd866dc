"""Offsets in a text with stand-ins for control tokens."""

from __future__ import annotations

from accord.data.control_tokens import Piece
from accord.data.rendered_offsets import offsets_in_rendered


def test_offsets_of_a_stand_in_are_the_whole_stand_in() -> None:
    """By hand: "ab", a stand-in of one character whose spelling has three, "c", and one of two characters spelled by one."""
    pieces = [Piece("ab", "ab"), Piece("X", "yyy"), Piece("c", "c"), Piece("ZZ", "z")]
    offsets = [(0, 1), (1, 2), (2, 5), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 7)]
    found = offsets_in_rendered(pieces, offsets)
    assert found == [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4), (4, 6), (6, 6)]
    assert offsets_in_rendered(pieces, []) == []
