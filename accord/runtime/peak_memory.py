"""Peak resident memory of one stage, where several run in one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def reset_peak() -> None:
    """Resets the process's peak of resident memory on Linux; elsewhere peaks only grow."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> float:
    """Peak resident memory since the reset, in MB."""
    try:
        for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return peak_rss_mb()


def peak_rss_mb() -> float:
    """Peak resident memory of the whole process, in MB; getrusage counts kilobytes, and on macOS bytes."""
    import resource  # absent on Windows, where this module can be imported all the same

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
