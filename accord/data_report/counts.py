"""What is counted over rows; counts of parts of a file add up to those of the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from accord.data_report.formatted import Formatted

SHOWN = 5
"""Rows that are named for each hazard."""
EXACT = 1 << 16
"""Tokens up to which lengths are counted exactly; longer ones to three digits."""


@dataclass(slots=True)
class Occurrences:
    """The rows that have one hazard."""

    count: float = 0
    """An estimate where not all rows could be compared."""
    rows: list[int] = field(default_factory=list)
    """The numbers of the first ones."""
    example: str = ""
    """What was found in the first one."""

    def add(self, row: int, found: str, weight: float = 1) -> None:
        self.count += weight
        if len(self.rows) < SHOWN:
            self.rows.append(row)
        self.example = self.example or found

    def merge(self, later: Occurrences) -> None:
        self.count += later.count
        self.rows = [*self.rows, *later.rows][:SHOWN]
        self.example = self.example or later.example


@dataclass(slots=True)
class Counts:
    """Everything that is counted."""

    rows: int = 0
    tokens: int = 0
    labels: int = 0
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    """Of the sequences that a model reads, by what is measured: how many have how many tokens."""
    cut: Counter[str] = field(default_factory=Counter)
    """What training cuts, by ``accord.data_report.cuts``."""
    hazards: dict[str, Occurrences] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    """Rows that have a column which is not read."""
    formats: dict[str, dict[str, None]] = field(default_factory=dict)
    """The columns that were read, by the name of the format."""
    notes: dict[str, None] = field(default_factory=dict)
    """How rows were changed, where that is not plain from their format."""
    longer_chosen: int = 0
    """Pairs whose preferred reply has more tokens."""
    pairs: int = 0

    def add_length(self, name: str, tokens: int) -> None:
        self.lengths.setdefault(name, Counter())[coarse(tokens)] += 1

    def add_format(self, found: Formatted) -> None:
        if found.name:
            self.formats.setdefault(found.name, {}).update(dict.fromkeys(found.columns))
        if found.note:
            self.notes[found.note] = None
        self.unused.update(found.unused)

    def add_hazards(self, row: int, found: Mapping[str, str]) -> None:
        for name, what in found.items():
            self.hazards.setdefault(name, Occurrences()).add(row, what)

    def merge(self, later: Counts) -> None:
        """Adds the counts of rows that follow."""
        for name in ("rows", "tokens", "labels", "longer_chosen", "pairs"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.cut.update(later.cut)
        self.unused.update(later.unused)
        self.notes.update(later.notes)
        for name, columns in later.formats.items():
            self.formats.setdefault(name, {}).update(columns)
        for key, lengths in later.lengths.items():
            self.lengths.setdefault(key, Counter()).update(lengths)
        for key, occurrences in later.hazards.items():
            self.hazards.setdefault(key, Occurrences()).merge(occurrences)


def coarse(tokens: int) -> int:
    """A length as it is counted.

    >>> coarse(65_000), coarse(1_234_567)
    (65000, 1230000)
    """
    if tokens <= EXACT:
        return tokens
    unit = int(10 ** (len(str(tokens)) - 3))
    return tokens // unit * unit


def percentile(lengths: Counter[int], percent: float) -> int:
    """The smallest length that at least ``percent`` of them do not exceed (nearest rank); 0 of none."""
    wanted, passed = percent / 100 * sum(lengths.values()), 0
    for length in sorted(lengths):
        passed += lengths[length]
        if passed >= wanted:
            return length
    return 0


def histogram(lengths: Counter[int], bins: int = 8) -> list[tuple[int, int, int]]:
    """(first, last, count) of at most ``bins`` ranges of equal, round width; ranges above the 99th percentile are one."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    most = percentile(lengths, 99)
    width = _round_up(max(1, (most - low) // bins + 1))
    start = low // width * width
    found: list[tuple[int, int, int]] = []
    while start <= most:
        last = start + width - 1
        found.append((start, last, sum(n for length, n in lengths.items() if start <= length <= last)))
        start += width
    if high >= start:
        found.append((start, high, sum(n for length, n in lengths.items() if length >= start)))
    return found


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50 …"""
    power = int(10 ** (len(str(width)) - 1))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)
