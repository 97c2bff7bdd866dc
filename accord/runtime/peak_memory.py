"""The peak of resident memory of one stage, where several share a process."""

from __future__ import annotations

import os
from pathlib import Path

from accord.runtime.run import peak_rss_mb


def reset_peak() -> None:
    """Linux forgets the process's peak of resident memory when asked to; elsewhere peaks only grow."""
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
