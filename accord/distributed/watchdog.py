"""Ends a rank that waits too long for another one, and names the rank that is late and where it is."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

LATE = 3
"""Exit code of a rank that gave up waiting for another one."""


class Watchdog:
    """A thread that ends this process where it has come to no new place for ``seconds``."""

    def __init__(self, store: Any, rank: int, size: int, seconds: float) -> None:
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.moves, self.place, self.since = 0, "its start", time.monotonic()
        self._beats = 0
        self._pause = min(1.0, seconds / 10)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, place: str) -> None:
        """This rank has come to ``place``."""
        self.moves, self.place, self.since = self.moves + 1, place, time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            with suppress(RuntimeError):  # the store ends with rank 0, and its launcher ends the others
                self._beats += 1
                self.store.set(f"place/{self.rank}", json.dumps([self.moves, self.place, self._beats]))
                if time.monotonic() - self.since > self.seconds:
                    self._give_up()

    def _give_up(self) -> None:
        before = self._places()
        if self._ended.wait(3 * self._pause):
            return
        after = self._places()
        frozen = [r for r in range(self.size) if r != self.rank and before[r] == after[r]]
        places = [Where(moves, place, r in frozen) for r, (moves, place, _) in enumerate(after)]
        print(f"accord: {late(places, self.seconds)}", file=sys.stderr, flush=True)
        os._exit(LATE)

    def _places(self) -> list[tuple[int, str, int]]:
        keys = [f"place/{r}" for r in range(self.size)]
        return [
            tuple(json.loads(self.store.get(key))) if self.store.check([key]) else (0, "its start", 0) for key in keys
        ]


@dataclass(frozen=True, slots=True)
class Where:
    """A rank's progress."""

    moves: int
    """Places it has come to."""
    place: str
    frozen: bool = False
    """Whether its process does not run at all."""


def late(places: Sequence[Where], seconds: float) -> str:
    """Which ranks are late, as a sentence: those that do not run, else those that have come to the fewest places.

    >>> late([Where(7, "step 3"), Where(6, "step 2")], 60)
    'rank 1 has been at step 2 for more than 60 s while the others wait; raise parallel.timeout_seconds if it needs longer.'
    """
    fewest = min(where.moves for where in places)
    ranks = [r for r, where in enumerate(places) if where.frozen]
    ranks = ranks or [r for r, where in enumerate(places) if where.moves == fewest]
    place, limit = places[ranks[0]].place, f"for more than {seconds:g} s"
    if len(ranks) == len(places):
        return f"all ranks have been at {place} {limit}; raise parallel.timeout_seconds if that needs longer."
    names = ", ".join(map(str, ranks))
    who = f"rank {names} has" if len(ranks) == 1 else f"ranks {names} have"
    return f"{who} been at {place} {limit} while the others wait; raise parallel.timeout_seconds if it needs longer."
