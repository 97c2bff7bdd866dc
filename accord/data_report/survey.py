"""A file read once, in chunks, in one or several processes: everything that the report says."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context

import numpy as np

from accord.data.rows import Row, Where
from accord.data.templated import FIRST_ROWS, is_templated
from accord.data.tokenizer import Tokenizer
from accord.data_report.check import Checked, Checker, NumberedRow
from accord.data_report.counts import Counts, Occurrences
from accord.data_report.cuts import Limits
from accord.data_report.formatted import formatted
from accord.data_report.model_tokenizer import open_named_tokenizer
from accord.data_report.reading import Kind, Said, read_row
from accord.data_report.repeats import Numbers, Seen, identity
from accord.data_report.spelled import Spelling, is_unicode
from accord.data_report.template_facts import template_facts
from accord.errors import UserError

CHUNK = 256
"""Rows that are checked at a time."""
ALONE = 4 * CHUNK
"""Rows that are checked before other processes are started, which takes about a second."""
NumberedRows = Iterator[NumberedRow]


@dataclass(frozen=True, slots=True)
class Inspection:
    """How a file is looked at."""

    model: str
    kind: Kind
    limits: Limits
    processes: int = 1
    templated: bool = False
    """Whether the file is in the chat template's format."""


@dataclass(slots=True)
class Survey:
    """What was found in a file."""

    counts: Counts
    first: list[NumberedRow]
    """The first rows, to be shown."""
    share: float = 1.0
    """Of the rows that could be compared with each other."""
    templated: bool = False
    """Whether the file is in the chat template's format."""


def make_checker(tokenizer: Tokenizer, how: Inspection) -> Checker:
    """Raises UserError where the tokenizer's chat template is broken."""
    facts = template_facts(tokenizer)
    return Checker(tokenizer, facts, Spelling(tokenizer, facts.openings), how.kind, how.limits, how.templated)


def survey(rows: NumberedRows, tokenizer: Tokenizer, how: Inspection, heldout: Seen | None, shown: int = 0) -> Survey:
    """Checks every row.  Memory does not grow with their number.

    ``heldout``: the prompts of the held-out file.  Raises UserError as the rows do, and where there is none.
    """
    first = list(islice(rows, max(shown, FIRST_ROWS)))
    how = replace(how, templated=_is_templated(first[:FIRST_ROWS], tokenizer, how.kind))
    found = Survey(Counts(), first[:shown], templated=how.templated)
    repeats = _Repeats(heldout)
    for checked in _checked(chain(first, rows), tokenizer, how):
        found.counts.merge(checked.counts)
        repeats.add(found.counts, checked)
    found.share = repeats.rows.share
    return found


def _is_templated(rows: list[NumberedRow], tokenizer: Tokenizer, kind: Kind) -> bool:
    """Whether training divides the file's texts into turns, which its first rows decide."""
    made: list[tuple[Where, Row]] = []
    for _, where, row in rows:
        with suppress(UserError):
            made += [(where, one) for one in formatted(row, kind, tokenizer.chat_template is not None, where).rows]
    if any(not is_unicode(said.text) for where, row in made for said in _said(row, kind, where)):
        return False
    return is_templated([row for _, row in made], tokenizer)


def _said(row: Row, kind: Kind, where: Where) -> list[Said]:
    try:
        return read_row(row, kind, where).said()
    except UserError:
        return []


def heldout_prompts(rows: NumberedRows, kind: Kind, chat: bool) -> Seen:
    """The hashes of the prompts of held-out rows; rows that cannot be read are left out."""
    seen = Seen()
    for chunk in _chunks(rows):
        hashes, numbers = [], []
        for number, where, row in chunk:
            with suppress(UserError):
                for one in formatted(row, kind, chat, where).rows:
                    hashes.append(identity(read_row(one, kind, where)).prompt)
                    numbers.append(number)
        seen.add(np.array(hashes, np.uint64), np.array(numbers, np.int64))
    return seen


class _Repeats:
    """Compares each row with the earlier ones, and its prompt with those held out."""

    def __init__(self, heldout: Seen | None) -> None:
        self.rows, self._heldout = Seen(), heldout

    def add(self, counts: Counts, checked: Checked) -> None:
        weight = 1 / self.rows.share
        _count(counts, "duplicates", checked.numbers, self.rows.add(checked.rows, checked.numbers), "row", weight)
        exchanged = self.rows.find(checked.exchanged)
        earlier = exchanged * (exchanged < checked.numbers)
        _count(counts, "contradictions", checked.numbers, earlier, "row", weight)
        if self._heldout is not None:
            found, weight = self._heldout.find(checked.prompts), 1 / self._heldout.share
            _count(counts, "heldout-prompts", checked.numbers, found, "held-out row", weight)


def _count(counts: Counts, name: str, numbers: Numbers, others: Numbers, what: str, weight: float) -> None:
    distinct, at = np.unique(numbers[others > 0], return_index=True)  # a row of several pairs counts once
    for number, other in zip(distinct.tolist(), others[others > 0][at].tolist(), strict=True):
        counts.hazards.setdefault(name, Occurrences()).add(number, f"as {what} {other}", weight)


# ------------------------------------------------------------------ processes
def _checked(rows: NumberedRows, tokenizer: Tokenizer, how: Inspection) -> Iterator[Checked]:
    """What is found in the rows, a chunk at a time and in order."""
    checker = make_checker(tokenizer, how)
    chunks = _chunks(rows)
    alone = None if how.processes < 2 else ALONE // CHUNK
    for chunk in islice(chunks, alone):
        yield checker.check(chunk)
    if (more := next(chunks, None)) is not None:
        yield from _in_processes(chain([more], chunks), how)


def _in_processes(chunks: Iterator[list[NumberedRow]], how: Inspection) -> Iterator[Checked]:
    context = get_context("spawn")  # a fork would copy the threads of tokenizers
    with ProcessPoolExecutor(how.processes, context, initializer=_open_checker, initargs=(how,)) as pool:
        waiting: deque[Future[Checked]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_check_chunk, chunk))
                if len(waiting) > 2 * how.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError("a process ended early, perhaps for lack of memory; use --processes 1.") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_of_this_process: list[Checker] = []
"""The checker of a worker process."""


def _open_checker(how: Inspection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, and that one these
    _of_this_process[:] = [make_checker(open_named_tokenizer(how.model), how)]


def _check_chunk(chunk: list[NumberedRow]) -> Checked:
    return _of_this_process[0].check(chunk)


# ------------------------------------------------------------------ rows
def numbered(rows: Iterable[tuple[Where, Row]]) -> NumberedRows:
    """Rows with numbers that go on from file to file, where there are several."""
    before, last, path = 0, 0, ""
    for where, row in rows:
        if where.path != path and path:
            before += last
        path, last = where.path, where.row
        yield before + where.row, where, row


def _chunks(rows: NumberedRows) -> Iterator[list[NumberedRow]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk
