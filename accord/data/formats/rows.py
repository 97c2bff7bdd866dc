"""The rows of any data file in the shapes that stages read, with what was recognized in it and what is not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from accord.data.files.source import LINES, open_source
from accord.data.formats import demonstrations, preferences, prompts
from accord.data.formats.format import Format, Kind, Unusable, unused_columns
from accord.data.formats.other_kinds import KTO_LABELS, advice
from accord.data.rows import Row, Where
from accord.io.readers import shorten

_MOST_COLUMNS = 8
"""Columns named in a sentence."""


def recognize(row: Row, kind: Kind, chat: bool = True) -> Format | None:
    """The format of a row that is read for ``kind``; None where it has none, so that its columns are to be named.

    ``chat``: whether the reader takes conversations; a transcript with speakers stays text where it does not.
    """
    if kind == "preferences":
        return (
            preferences.transcripts(row, chat)
            or preferences.pair(row, chat)
            or preferences.scored(row)
            or preferences.openai(row)
        )
    if kind == "prompts":
        return prompts.prompt(row, chat)
    if kind == "base":
        return demonstrations.conversation(row) or demonstrations.text(row)
    return (
        demonstrations.conversation(row)
        or demonstrations.prompt_completion(row, chat)
        or demonstrations.instruction(row)
        or demonstrations.text(row)
    )


class FormattedRows:
    """The rows of a file, in order, each with its place; after reading, what was found in it.

    Nulls are absent columns.  A row of no known format passes unchanged, for its reader to name what is missing.
    """

    def __init__(self, source: str | Path, kind: Kind, chat: bool = True, beside: Sequence[str] = ()) -> None:
        """Opens the file; ``beside`` are further columns that its reader reads.  Raises UserError as ``open_source``."""
        self._source = open_source(source)
        self._kind, self._chat = kind, chat
        self._beside = frozenset(beside)
        self.formats: dict[str, dict[str, None]] = {}
        """The columns that were read, by the format's name, both in the order they were found."""
        self.notes: dict[str, None] = {}
        """How rows were changed, where that is not plain from their format."""
        self.unused: dict[str, None] = {}
        """Columns that hold something which is not read."""
        self.dropped: Counter[str] = Counter()
        """Rows that their format cannot read, by reason."""

    def __iter__(self) -> Iterator[tuple[Where, Row]]:
        """Reads the rows.  Raises UserError naming file and row, also for rows that another kind of stage reads."""
        for where, row in self._source.rows:
            found = recognize(row, self._kind, self._chat)
            if (found is None or not row.keys().isdisjoint(KTO_LABELS)) and (why := advice(row, self._kind)):
                raise where.error(why)
            if found is None:
                yield where, row
                continue
            self._note(found, row)
            try:
                made = found.read(row, where)
            except Unusable as reason:
                self.dropped[str(reason)] += 1
                continue
            for one in made:
                yield where, one

    def _note(self, found: Format, row: Row) -> None:
        read = self.formats.setdefault(found.name, {})
        for column in found.columns:
            read[column] = None
        if found.note:
            self.notes[found.note] = None
        if len(row) > len(found.columns):
            self.unused.update((key, None) for key in unused_columns(row, self._kind, found) if key not in self._beside)

    def describe(self) -> str:
        """What was recognized, and which columns are not used; empty before a row was."""
        if not self.formats:
            return ""
        names = " and ".join(f"{name} ({', '.join(columns)})" for name, columns in self.formats.items())
        kind = "" if self._source.kind == LINES else f" in {self._source.kind}"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"Read as {names}{kind}{notes}.{self._unused()}"

    def _unused(self) -> str:
        read = {column for columns in self.formats.values() for column in columns}
        left = [shorten(name, 40) for name in self.unused if name not in read]
        more = f" and {len(left) - _MOST_COLUMNS} more" if len(left) > _MOST_COLUMNS else ""
        return f" Not used: {', '.join(left[:_MOST_COLUMNS])}{more}." if left else ""
