"""``progress.json``: the progress of a stage, for a reader in this terminal or another."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from accord.io.atomic import write_bytes
from accord.io.finite_json import dumps


class ProgressFile:
    """``progress.json`` in a stage's folder, rewritten in place at most twice a second.

    The first version is renamed into place; later ones are written over it in one call, padded to one length, so that
    a reader never sees half of one.  The file stays after a stop or a kill and then shows the last step.
    """

    NAME, LENGTH, EVERY = "progress.json", 1024, 0.5

    def __init__(self, directory: Path, step: int, total: int) -> None:
        self.path, self.first, self.total = directory / self.NAME, step, total
        self.begun, self.next = time.time(), 0.0
        self.metrics: dict[str, float] = {}
        write_bytes(self.path, self._text(step))
        self._file = os.open(self.path, os.O_WRONLY)

    def update(self, step: int, metrics: Mapping[str, float], last: bool = False) -> None:
        """Shows ``metrics`` together with the earlier ones; ``last`` writes regardless of the time."""
        now = time.monotonic()
        if now < self.next and not last:
            return
        self.next = now + self.EVERY
        self.metrics |= {k: float(v) for k, v in metrics.items()}
        os.pwrite(self._file, self._text(step), 0)

    def _text(self, step: int) -> bytes:
        known = {"pid": os.getpid(), "step": step, "total": self.total, "first": self.first, "begun": self.begun}
        newest = dict(list(self.metrics.items())[-24:])
        text = dumps({**known, "updated": time.time(), "metrics": newest})
        while len(text) > self.LENGTH and newest:
            newest.popitem()
            text = dumps({**known, "updated": time.time(), "metrics": newest})
        return text.ljust(self.LENGTH).encode()

    def close(self) -> None:
        os.close(self._file)
