"""On a node of a cluster: runs a stage in a process of its own, and sends and receives files where the disk is not shared.

Files that are received are checked by their digests.  The folder for them is ACCORD_WORKSPACE, by default in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from accord.config.load import build
from accord.errors import Interrupted, UserError, Waiting
from accord.io.atomic import replacing_file
from accord.io.digests import file_digest
from accord.pipeline.lock import LOCK, alive, owner
from accord.pipeline.records import read_begun, read_done
from accord.pipeline.task import folder
from accord.pipeline.worker import Killed, Worker
from accord.stage_kinds.table import STAGE_KINDS

WORKSPACE = "ACCORD_WORKSPACE"
BLOCK = 32 << 20
"""Bytes sent at a time."""
Stamp = tuple[int, int, int]
"""A file's size, time of change in ns, and inode."""


class StageHost:
    """What runs one stage on a node; its answers are plain values."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._root = Path(os.environ.get(WORKSPACE) or Path.home() / ".cache" / "accord" / "workspace")

    def introduce(self, probe: str, content: str) -> dict[str, Any]:
        """The host's name, and ``root``: the folder to use where this node does not see the file ``probe``, else empty."""
        try:
            shared = WORKSPACE not in os.environ and Path(probe).read_text() == content
        except OSError:
            shared = False
        return {"host": socket.gethostname(), "root": "" if shared else str(self._root)}

    # --------------------------------------------------------------------------------- files
    def clear(self, place: str) -> None:
        """Empties a stage's folder in the workspace.  Raises UserError where another process writes it."""
        if alive(lock := owner(Path(place))):
            raise UserError(f"{place} on {socket.gethostname()}: process {lock.get('pid')} is writing it; stop it.")
        shutil.rmtree(place, ignore_errors=True)

    def lacks(self, digests: Mapping[str, str]) -> list[str]:
        """Those of the files, path: digest, that are not here with that content."""
        return [name for name, digest in digests.items() if not _is(Path(name), digest)]

    def receive(self, name: str, blocks: list[bytes], digest: str) -> None:
        """Writes a file.  Raises UserError where its digest is another one."""
        with replacing_file(Path(name)) as file:
            for block in blocks:
                file.write(block)
        if digest and not _is(Path(name), digest):
            raise UserError(f"{name} on {socket.gethostname()}: arrived with another digest; run again.")

    def listing(self, place: str) -> dict[str, Stamp]:
        """The files in a folder by relative name, without hidden ones and the lock."""
        found = {}
        for root, _, names in os.walk(place):  # which passes over folders that vanish meanwhile
            for name in names:
                path = Path(root, name).relative_to(place)
                if not any(part.startswith(".") for part in path.parts) and name != LOCK:
                    with suppress(OSError):  # it was replaced in this instant
                        found[path.as_posix()] = _stamp(Path(root, name))
        return found

    def read(self, path: str, stamp: Stamp, offset: int, grows: bool = False) -> bytes | None:
        """A block of a file; None where it is no longer the one with this stamp, though it may have grown if it ``grows``."""
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                block = file.read(min(BLOCK, stamp[0] - offset))
            now = _stamp(Path(path))
        except OSError:
            return None
        return block if now == stamp or (grows and now[2] == stamp[2] and now[0] >= stamp[0]) else None

    def record(self, place: str) -> dict[str, Any]:
        """The record of the stage in a folder, finished or begun."""
        return read_done(Path(place)) or read_begun(Path(place))

    # --------------------------------------------------------------------------------- the stage
    def start(self, job: Mapping[str, Any]) -> None:
        """Starts the stage's process in ``cwd``, once one that was left without its host has saved its state."""
        config = build(STAGE_KINDS[job["kind"]].settings, job["config"], {}, "the job")
        if job["cwd"]:
            os.chdir(job["cwd"])
        end = time.monotonic() + 60
        while (lock := owner(folder(config, job["kind"]))) and lock.get("host") == socket.gethostname():
            if not alive(lock) or time.monotonic() > end:
                break
            time.sleep(0.1)
        for name, value in job["environment"].items():
            os.environ[name] = value
        self._worker = Worker(job["kind"], config, job["force"], Path(job["journal"]), job["threads"], quiet=True)

    def poll(self, places: tuple[str, ...]) -> dict[str, Any]:
        """``state`` (running, done, stopped, waits, failed or killed), ``words``, and the listings of ``places``."""
        assert self._worker is not None
        state, words = "running", ""
        try:
            state = "running" if self._worker.result() is None else "done"
        except Interrupted as stopped:
            state, words = "stopped", str(stopped)
        except Waiting as wait:
            state, words = "waits", str(wait)
        except UserError as error:
            state, words = "failed", str(error)
        except Killed as killed:
            state, words = "killed", str(killed)
        return {"state": state, "words": words, "files": [self.listing(place) for place in places]}

    def stop(self) -> None:
        """Asks the stage to save its state and end."""
        if self._worker is not None:
            self._worker.stop()


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest
