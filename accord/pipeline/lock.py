"""Who writes a stage's folder: ``lock.json`` with pid, host and the process's start.  A dead owner's lock is taken over.

Processes of one host look and write in turn, by ``filelock`` on the folder itself, which leaves no file behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.atomic import create_text
from accord.io.records import Lock, read_record_to_show

LOCK = "lock.json"


class Locked(UserError):
    """Another process is writing the folder."""


def process_start(pid: int) -> str:
    """The start time of a process, in the system's form; empty where there is no such process.

    Pids are reused; pid and start time together are unique.
    """
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"  # a zombie writes nothing
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def owner(directory: Path) -> dict[str, Any]:
    """The content of the lock, empty where there is none or a damaged one."""
    return read_record_to_show(directory / LOCK, Lock)


def alive(lock: dict[str, Any]) -> bool:
    """Whether the owner still runs; that of another host is assumed to."""
    if lock.get("host") != socket.gethostname():
        return bool(lock)
    return bool(process_start(int(lock.get("pid", 0))) == lock.get("start"))


@contextlib.contextmanager
def hold_lock(directory: Path) -> Iterator[None]:
    """Holds the folder's lock.  Raises Locked, naming the owner, where another process does."""
    mine = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    _take(directory, mine)
    try:
        yield
    finally:
        if owner(directory) == mine:
            (directory / LOCK).unlink(missing_ok=True)


def _take(directory: Path, mine: dict[str, Any]) -> None:
    """Writes the lock, whole or not at all.

    The folder itself is locked meanwhile: of two that find a dead owner's lock, the later must not remove the
    earlier one's new lock.
    """
    from filelock import lock_descriptor

    path = directory / LOCK
    guard = os.open(directory, os.O_RDONLY)
    try:
        lock_descriptor(guard, poll_interval=0.01)  # until it is closed, also by this process's death
        if path.exists():
            other = owner(directory)
            if alive(other):
                raise Locked(refusal(directory, other))
            path.unlink(missing_ok=True)
        try:
            create_text(path, json.dumps(mine))
        except FileExistsError:  # from another host, in this instant
            raise Locked(refusal(directory, owner(directory))) from None
    finally:
        os.close(guard)


def refusal(directory: Path, other: dict[str, Any]) -> str:
    """Who is writing a folder, and what to do."""
    since = f" (since {other.get('since', 'some time')})"
    if other.get("host") == socket.gethostname():
        return f"{directory}: process {other['pid']} is writing it{since}; wait for it, or stop it, and run again."
    return (
        f"{directory}: process {other.get('pid')} on host {other.get('host')!r} is writing it{since}; if that is no longer"
        f" so, remove {directory / LOCK} and run again."
    )
