"""Rows of a JSON array, read element by element in memory that does not grow with the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from accord.errors import UserError
from accord.io.readers import MAX_ROW_BYTES, parse_json, parse_row

_CHUNK = 1 << 20
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


@dataclass(slots=True)
class _Buffer:
    """The part of the file that is read, of which ``text[start:]`` is not yet used."""

    file: TextIO
    name: str
    text: str = ""
    start: int = 0
    line: int = 1
    """Of the character at ``start``."""

    def more(self) -> bool:
        """Reads on, at least as much as there is; whether there was more."""
        self.text, self.start = self.text[self.start :], 0
        found = self.file.read(max(_CHUNK, len(self.text)))
        self.text += found
        return bool(found)

    def move(self, position: int) -> None:
        """Makes ``position`` the start."""
        self.line += self.text.count("\n", self.start, position)
        self.start = position

    def peek(self) -> str:
        """The next character that is no space, which then is at the start; empty at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.start)
            assert found is not None  # it matches nothing, too
            if found.end() < len(self.text):
                self.move(found.end())
                return self.text[self.start]
            if not self.more():
                return ""

    def error(self, row: int, problem: str, position: int = -1) -> UserError:
        line = self.line + self.text.count("\n", self.start, max(position, self.start))
        return UserError(f"{self.name}, row {row}: not valid JSON: {problem} at line {line}")


def array_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) for each element of the array in ``file``, which ``name`` names in messages.

    Raises UserError, naming file and row, for text that is not such an array, and for an array without elements.
    """
    buffer, row, mark = _Buffer(file, name), 0, "["
    if buffer.peek() != mark:
        raise UserError(f"{name}: not a JSON array")
    while mark != "]":
        row += 1
        buffer.move(buffer.start + 1)  # the bracket or the comma
        if row == 1 and buffer.peek() == "]":
            raise UserError(f"{name}: no rows; expected an array of JSON objects")
        yield row, _element(buffer, row)
        mark = buffer.peek()
        if not mark or mark not in ",]":
            raise buffer.error(row, "expected ',' or ']' after this row")
    buffer.move(buffer.start + 1)
    if buffer.peek():
        raise buffer.error(row, "more text after the array")


def _element(buffer: _Buffer, row: int) -> dict[str, Any]:
    """The next element, after which the buffer then starts."""
    where = f"{buffer.name}, row {row}"
    buffer.peek()
    while True:
        try:
            end = _DECODER.raw_decode(buffer.text, buffer.start)[1]
        except json.JSONDecodeError as error:
            if len(buffer.text) - buffer.start > MAX_ROW_BYTES:
                raise UserError(f"{where}: not valid JSON, or longer than {MAX_ROW_BYTES:,} bytes") from None
            position = error.pos - buffer.start
            if not buffer.more():  # which moves the start to 0
                raise buffer.error(row, error.msg, position) from None
        except (RecursionError, ValueError):  # too deep, or a number of thousands of digits
            parse_json(buffer.text[buffer.start :], where)
            raise
        else:
            if end < len(buffer.text) or not buffer.text[buffer.start : buffer.start + 1].isdecimal():
                break
            if not buffer.more():  # a number at the end of the buffer may go on
                end = len(buffer.text)
                break
    found = parse_row(buffer.text[buffer.start : end], where)
    buffer.move(end)
    return found
