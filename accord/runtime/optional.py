"""What a finished stage can do without: a learning curve, a video, TensorBoard, its entry in the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def optional(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """An error in the block costs ``what`` and nothing else: it ends there and is printed as one line."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"{what} was omitted: {first}")
