"""A row of a file as the rows in accord's shapes that its format makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from accord.data.formats.format import Unusable, unused_columns
from accord.data.formats.other_kinds import KTO_LABELS, advice
from accord.data.formats.rows import recognize
from accord.data.rows import Row, Where
from accord.data_report.reading import Kind


@dataclass(frozen=True, slots=True)
class Formatted:
    """What a format makes of a row."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row] = ()
    unused: tuple[str, ...] = ()
    """Columns that hold something which is not read."""
    note: str = ""
    left_out: str = ""
    """Why the format makes nothing of it."""


def formatted(row: Row, kind: Kind, chat: bool, where: Where) -> Formatted:
    """The rows that training reads; a row of no known format is left as it is.

    Raises UserError, naming the row, where a column holds what it may not, or another kind of stage reads such rows.
    """
    found = recognize(row, kind, chat)
    if (found is None or not row.keys().isdisjoint(KTO_LABELS)) and (why := advice(row, kind)):
        raise where.error(why)
    if found is None:
        return Formatted("", (), [row])
    unused = tuple(unused_columns(row, kind, found))
    try:
        return Formatted(found.name, found.columns, found.read(row, where), unused, found.note)
    except Unusable as reason:
        return Formatted(found.name, found.columns, (), unused, found.note, str(reason))
