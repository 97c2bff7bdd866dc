"""The process's standard streams: what cannot be shown is discarded, and training goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def open_streams() -> None:
    """Opens the null device for standard streams that are closed, so that no file of ours gets their numbers.

    Characters that a stream's encoding has not are replaced from now on.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
        elif getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, text that cannot be written to stdout or stderr is discarded instead of raising OSError.

    The reason is printed once on stderr, unless the reader has just ended (``| head``).
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, stream and LastingStream(stream)) for stream in streams)
    try:
        yield
    finally:
        if sys.stdout:
            sys.stdout.flush()
        sys.stdout, sys.stderr = streams


class LastingStream:
    """A text stream that is connected to the null device once it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: closed within this process
            discard(self._stream, error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            discard(self._stream, error)


def discard(stream: TextIO, error: OSError | ValueError) -> None:
    """Connects a stream's descriptor to the null device, and prints why on stderr."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    reader_ended = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE
    if stream is not sys.__stderr__ and not reader_ended:
        with suppress(OSError, ValueError):
            why = getattr(error, "strerror", None) or error
            print(f"accord: the output cannot be written ({why}); the rest of it is omitted.", file=sys.__stderr__)
