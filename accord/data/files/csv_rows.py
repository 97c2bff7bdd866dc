"""Rows of a CSV file: a header, then cells of text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from accord.errors import UserError
from accord.io.readers import MAX_ROW_BYTES, shorten

DELIMITERS = (",", ";", "\t")
NUMBERS = ("margin", "weight", "label")
"""Columns whose cells are numbers where they look like one; ``label`` may also be true or false."""


def csv_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, cells by column) for each row after the header; the delimiter is the header's most frequent one.

    ``file`` is open with ``newline=""``; ``name`` names it in messages.  Raises UserError, naming file and row, for a header
    with an empty or repeated name, a row of another length, quotes that do not close, and a file without rows.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    first = file.readline(MAX_ROW_BYTES)
    delimiter = max(DELIMITERS, key=first.count)
    header = _header(first, delimiter, name)
    number = 0
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            line = reader.line_num + 1
            raise UserError(
                f"{name}, row {number + 1}: not valid CSV before line {line} ({error}); check its quotes"
            ) from None
        if cells is None:
            break
        if not cells:
            continue
        number += 1
        if len(cells) != len(header):
            raise UserError(
                f"{name}, row {number}: {len(cells)} cells, but the header names {len(header)} columns; put cells that hold"
                f" {delimiter!r} in quotes"
            )
        yield number, {key: _value(key, cell) for key, cell in zip(header, cells, strict=True)}
    if not number:
        raise UserError(f"{name}: no rows after the header")


def _header(line: str, delimiter: str, name: str) -> list[str]:
    try:
        names = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error as error:
        raise UserError(f"{name}: the header is not valid CSV ({error})") from None
    if names and not names[0]:
        names[0] = "index"  # as pandas leaves the name of its row numbers out
    for place, column in enumerate(names):
        if not column:
            raise UserError(f"{name}: column {place + 1} has no name in the header")
        if column in names[:place]:
            raise UserError(f"{name}: the header names the column {shorten(column)!r} twice; rename one")
    if not names:
        raise UserError(f"{name}: no header; expected column names in the first line")
    return names


def _value(column: str, cell: str) -> Any:
    if column not in NUMBERS:
        return cell
    if not cell.strip():
        return None
    if column == "label" and cell.strip().lower() in ("true", "false"):
        return cell.strip().lower() == "true"
    try:
        return float(cell)
    except ValueError:
        return cell
