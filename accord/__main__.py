"""The command ``accord``, also as ``python -m accord``.  Ctrl-C ends it with one line, also while modules load."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from accord.errors import stopped_at_once


def end_on_ctrl_c() -> None:
    """Ctrl-C ends the process with code 130 and one line until a stage handles it (``runtime/stop_signal.py``)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored (nohup), or somebody's
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    with suppress(OSError):
        os.write(2, f"{stopped_at_once(sys.argv[1:])}\n".encode())  # safe within another write
    raise SystemExit(130)  # unlike KeyboardInterrupt no traceback, wherever in an import it comes


def main() -> int:
    """Runs the command line; returns the exit code."""
    end_on_ctrl_c()
    from accord.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
