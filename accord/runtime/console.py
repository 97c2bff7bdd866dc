"""The terminal that all of accord writes to."""

from __future__ import annotations

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves the error to the caller, where rich would end the process without a word."""
        raise


console = _Console(highlight=False, soft_wrap=True)
