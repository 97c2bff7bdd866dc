"""Ctrl-C and SIGTERM as a flag that loops check."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from accord.runtime.console import console

STOPPING = "stopping after this step; press again to stop at once"


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag that loops check; the second one stops at once."""

    def __init__(self, words: str = STOPPING) -> None:
        """``words``: what the first signal prints; empty: nothing, where another process says it."""
        self.raised = False
        self._words = words
        self._previous: dict[signal.Signals, Any] = {}
        self._announcer: threading.Thread | None = None

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: a notebook's worker, say
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._announcer is not None:
            self._announcer.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
        if self._words:
            # In a thread: a signal comes between any two lines, those of a print or of an import among them.
            self._announcer = threading.Thread(target=console.print, args=(self._words,))
            self._announcer.start()
