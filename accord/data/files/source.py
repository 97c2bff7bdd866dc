"""Rows of a data file, whatever it is: JSON Lines, a JSON array, CSV, Parquet, an Arrow folder, a data set of a hub.

What the file is is seen from its content; only CSV is known by its name.  Every row has its place, for messages.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from accord.data.files.array import array_rows
from accord.data.files.arrow import arrow_files, arrow_rows, is_arrow_folder, parquet_rows
from accord.data.files.csv_rows import csv_rows
from accord.data.files.hub import hub_files, is_hub_name
from accord.data.rows import Where
from accord.errors import UserError
from accord.io.installation import located
from accord.io.readers import NO_TEXT, UTF8_MARK, require_file, rows_of_lines

LINES = "JSON Lines"
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_START = 1 << 12
"""Bytes by which a file is recognized."""

Rows = Iterator[tuple[Where, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of a data file, to be read once, and what kind of file it is."""

    kind: str
    """``JSON Lines``, ``JSON array``, ``CSV``, ``Parquet``, ``Arrow``, with ``gzip`` where it is compressed."""
    rows: Rows


def open_source(source: str | Path, *, halves: bool = False) -> Source:
    """The rows of a file, an Arrow folder or a data set of the Hugging Face hub (``org/name``).

    A row's number counts from 1: lines of JSON Lines, elements of an array, rows after a CSV header.  ``halves``: whether
    lines of JSON Lines may hold half of a surrogate pair, for a reader that counts them.  Raises UserError
    naming the file, at once where it cannot be one of these, and naming the row while it is read.
    """
    path = located(source)
    if path.is_dir():
        if not is_arrow_folder(path):
            raise UserError(f"{path}: a folder, expected a file, or a folder that datasets' save_to_disk wrote")
        return Source("Arrow", _of_all(arrow_files(path)))
    if is_hub_name(str(path)):
        files = hub_files(str(path))
        return Source(_open_file(files[0]).kind, _of_all(files))
    return _open_file(path, halves)


def _of_all(files: list[Path]) -> Rows:
    for file in files:
        yield from _placed(arrow_rows(file), file) if file.suffix == ".arrow" else _open_file(file).rows


def _placed(rows: Iterator[tuple[int, dict[str, Any]]], path: Path) -> Rows:
    for number, row in rows:
        yield Where(str(path), number), row


def _open_file(path: Path, halves: bool = False) -> Source:
    with _readable(path):
        require_file(path)
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP
        with _opened(path, zipped) as stream:
            start = stream.read(_START)
    kind = _kind(path, start, zipped)
    if kind == "Parquet":
        return Source(kind, _placed(parquet_rows(path), path))
    return Source(f"{kind}, gzip" if zipped else kind, _text_rows(path, kind, zipped, halves))


def _kind(path: Path, start: bytes, zipped: bool) -> str:
    """What a file holds, by its first bytes, those after decompression."""
    if start.startswith(_PARQUET) and not zipped:
        return "Parquet"
    for mark, words in NO_TEXT.items():
        if start.startswith(mark):
            raise UserError(f"{path}: {words}")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in (".csv", ".tsv"):
        return "CSV"
    begin = start.removeprefix(UTF8_MARK).lstrip()
    if begin.startswith(b"["):
        return "JSON array"
    if begin.partition(b"\n")[0].strip() == b"{":
        raise UserError(f"{path}: a JSON object over several lines; write an array of rows, or one object per line")
    return LINES


def _text_rows(path: Path, kind: str, zipped: bool, halves: bool) -> Rows:
    with _readable(path), _opened(path, zipped) as file:
        if kind == LINES:
            yield from _placed(rows_of_lines(file, path, halves=halves), path)
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            yield from _placed(_READERS[kind](text, str(path)), path)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None


_READERS = {"JSON array": array_rows, "CSV": csv_rows}


def _opened(path: Path, zipped: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into sentences."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: the gzip data is damaged or incomplete; copy it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
