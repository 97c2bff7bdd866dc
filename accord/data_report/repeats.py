"""Which rows repeat earlier ones, by hashes, in memory that does not grow with the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from accord.data.rows import reply_text
from accord.data_report.reading import Reading

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
CAPACITY = 1 << 20
"""Hashes that are kept; of more distinct ones a share is, and counts are estimates."""
NEVER = 0
"""The hash of what is not compared."""


@dataclass(slots=True)
class Seen:
    """Hashes of earlier rows with the number of the first row of each, in sorted runs whose lengths double.

    Above ``capacity`` the larger half of all hashes is no longer kept: any row's chance to be seen again stays ``share``.
    """

    capacity: int = CAPACITY
    share: float = 1.0
    _runs: list[tuple[Hashes, Numbers]] = field(default_factory=list)

    def find(self, hashes: Hashes) -> Numbers:
        """The number of the first row of each hash (N,); 0 for those not seen."""
        found = np.zeros(len(hashes), np.int64)
        for known, numbers in self._runs:
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            found = np.where(known[at] == hashes, numbers[at], found)
        return np.where(hashes == NEVER, 0, found)

    def add(self, hashes: Hashes, numbers: Numbers) -> Numbers:
        """As ``find``, and then the hashes are seen: (N,) hashes of the rows ``numbers``, which rise."""
        earlier = self.find(hashes)
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        inside = numbers[first][inverse]
        kept = (distinct <= self._limit) & (distinct != NEVER)
        within = (earlier == 0) & (inside < numbers) & kept[inverse]
        new = kept & (earlier[first] == 0)
        self._push(distinct[new], numbers[first[new]])
        return np.where(within, inside, earlier)

    @property
    def _limit(self) -> np.uint64:
        limit: np.uint64 = np.uint64(min(2**64 - 1, int(self.share * 2**64)))
        return limit

    def _push(self, hashes: Hashes, numbers: Numbers) -> None:
        if len(hashes):
            self._runs.append((hashes, numbers))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) > len(self._runs[-2][0]):
            self._runs[-2:] = [_merge(self._runs[-2], self._runs[-1])]
        while sum(len(run) for run, _ in self._runs) > self.capacity:
            self.share /= 2
            cut = [(run, int(np.searchsorted(run, self._limit, "right"))) for run, _ in self._runs]
            rows = [numbers for _, numbers in self._runs]
            self._runs = [(run[:n].copy(), r[:n].copy()) for (run, n), r in zip(cut, rows, strict=True) if n]


def _merge(one: tuple[Hashes, Numbers], two: tuple[Hashes, Numbers]) -> tuple[Hashes, Numbers]:
    hashes = np.concatenate([one[0], two[0]])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], np.concatenate([one[1], two[1]])[order]


@dataclass(frozen=True, slots=True)
class Identity:
    """The hashes by which a row is compared with others."""

    row: int
    exchanged: int
    """Of the same pair with its replies exchanged."""
    prompt: int


def identity(row: Reading) -> Identity:
    """The hashes of a row's whole content, of the content with the replies exchanged, and of its prompt."""
    calls = [repr(m["tool_calls"]) for m in row.turns() if m.get("tool_calls")]
    context = [*(f"{m['role']}\x1f{m.get('content')}" for m in row.turns()), *calls, row.document or ""]
    replies = [
        f"{reply_text(reply)}\x1f{'' if isinstance(reply, str) else reply.get('tool_calls')}" for reply in row.replies
    ]
    prompt = row.prompt_text().strip()
    return Identity(
        _hash([*context, *replies]),
        _hash([*context, *reversed(replies)]) if len(set(replies)) > 1 and row.label != 0.5 else NEVER,
        _hash([prompt]) if prompt else NEVER,
    )


def _hash(parts: Sequence[str]) -> int:
    text = "\x1e".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") or 1
