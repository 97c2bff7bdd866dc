"""A process that runs one job for its parent: reads it from stdin, and stops the stage when stdin is closed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from accord.runtime.output import lasting_output, open_streams

STOPPED = 130
"""Exit code of a stage that was stopped and saved its state."""


def run_job(work: Callable[[dict[str, Any]], int]) -> NoReturn:
    """Ends this process with the exit code that ``work`` returns for the job, a line of JSON on stdin.

    When stdin is closed, because the parent asks for it or has ended, the stage gets SIGTERM: it saves its state and stops.
    """
    open_streams()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))  # until the stage installs its own handler
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch_input, daemon=True).start()
    with lasting_output():
        code = work(job)
    sys.stderr.flush()
    os._exit(code)  # a thread still waits for stdin


def _watch_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
