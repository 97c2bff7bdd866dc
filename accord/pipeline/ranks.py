"""Starts the ranks of a stage on this machine, watches them, and ends all of them where one fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config.common import ParallelStage, Stage
from accord.errors import Failed, Interrupted, UserError
from accord.pipeline.child import STOPPED
from accord.runtime.launcher import is_launched
from accord.runtime.stop_signal import StopSignal

DONE, FAILED, WRONG, LATE, LOST = range(5)
"""Exit codes of a rank: WRONG for a user's mistake, LATE from the watchdog, LOST where another rank has ended."""
GRACE = 5.0
"""Seconds that ranks have to end by themselves once one has failed."""
STOP_GRACE = 60.0
"""The same once one has stopped at the user's request, or is done."""


def starts_ranks(config: Stage) -> bool:
    """Whether a stage asks for several processes, and no launcher has started this one as one of them."""
    return isinstance(config, ParallelStage) and config.parallel.nproc > 1 and not is_launched()


def check_ranks(config: ParallelStage) -> None:
    """Raises UserError where this machine has fewer devices than processes."""
    import torch

    from accord.runtime.device import resolve_device

    device, nproc = resolve_device(config.device), config.parallel.nproc
    if device.type == "cpu":
        return
    if device.type != "cuda" or device.index is not None:
        raise UserError(
            f"device: {config.device!r} is one device, and parallel.nproc is {nproc}; use device=cuda or device=cpu."
        )
    if nproc > torch.cuda.device_count():
        raise UserError(
            f"parallel.nproc: {nproc} processes need {nproc} CUDA devices, and this machine has"
            f" {torch.cuda.device_count()}; lower it, or use device=cpu."
        )


def run_on_ranks(kind: str, config: ParallelStage, options: Mapping[str, Any], log: Path) -> None:
    """Runs a stage on ``parallel.nproc`` processes; ``options`` are those of ``run_stage``, as JSON data.

    After a failure the last output of ranks other than 0 is appended to ``log``, where there is one.
    Raises UserError for a mistake that every rank reports, Failed naming the rank for any other failure, and Interrupted.
    """
    job = {"kind": kind, "config": config.model_dump(mode="json"), **options}
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        ranks: list[_Rank] = []
        try:
            for rank in range(config.parallel.nproc):
                ranks.append(_start(rank, config, job, Path(folder)))
            _wait(ranks, stop)
        finally:
            for started in ranks:
                started.end()
    try:
        raise_verdict([rank.ended for rank in ranks])
    except Failed:
        own = {n: rank.ended for n, rank in enumerate(ranks) if n and rank.ended.code not in (None, LOST)}
        if log.exists():
            with log.open("a", encoding="utf-8") as file:
                file.writelines(f"rank {n}: {end.output}\n" for n, end in own.items() if end.output)
        raise


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: its exit code (None: it was ended by us), its last line, and all of its output."""

    code: int | None
    said: str = ""
    output: str = ""


@dataclass(slots=True)
class _Rank:
    process: subprocess.Popen[str]
    stderr: Any
    ended: Ended = field(default_factory=lambda: Ended(None))

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Asks it to save the state and end."""
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def end(self) -> None:
        """Ends it where it still runs, and records how it ended."""
        code = self.process.poll()
        if code is None:
            self.process.kill()
        self.process.wait()
        self.stop()
        self.stderr.seek(0)
        output = self.stderr.read().strip()
        self.stderr.close()
        self.ended = Ended(code, (output.splitlines() or [""])[-1], output)


def _start(rank: int, config: ParallelStage, job: Mapping[str, Any], folder: Path) -> _Rank:
    nproc = config.parallel.nproc
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": nproc, "ACCORD_RENDEZVOUS": folder / "port"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    environment |= {name: str(value) for name, value in own.items()}
    threads = max(1, (os.cpu_count() or 1) // nproc)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment.setdefault(name, str(threads))
    if any(name == "lo" for _, name in socket.if_nameindex()):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the machine's name resolves to
    stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by ``end``)
    process = subprocess.Popen(
        [sys.executable, "-m", "accord.pipeline.rank"],
        stdin=subprocess.PIPE,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=stderr,
        env=environment,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches the ranks only through us
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has already ended
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    return _Rank(process, stderr)


def _wait(ranks: Sequence[_Rank], stop: StopSignal) -> None:
    """Returns when all ranks have ended, or when the time that they have after the first one's end is over."""
    deadline = float("inf")
    while time.monotonic() < deadline:
        codes = [rank.poll() for rank in ranks]
        if None not in codes:
            return
        if stop.raised:
            for rank in ranks:
                rank.stop()
        ended = [code for code in codes if code is not None]
        if ended and (deadline == float("inf") or any(code not in (DONE, STOPPED) for code in ended)):
            grace = STOP_GRACE if all(code in (DONE, STOPPED) for code in ended) else GRACE
            deadline = min(deadline, time.monotonic() + grace)
        time.sleep(0.02)


def raise_verdict(ends: Sequence[Ended]) -> None:
    """Raises what the ends of the ranks amount to; nothing where rank 0 is done.

    An own failure counts more than a kill, a kill more than a rank that waited in vain, and that more than one that lost
    contact.
    """
    if ends[0].code == DONE:
        return
    own = {rank: end for rank, end in enumerate(ends) if end.code in (FAILED, WRONG)}
    if own:
        rank, end = next(iter(own.items()))
        if end.code == WRONG and (rank == 0 or len(own) == len(ends)) and len({e.said for e in own.values()}) == 1:
            raise UserError(end.said)
        raise Failed(f"rank {rank} of {len(ends)}: {end.said}")
    for rank, end in enumerate(ends):
        if end.code is not None and end.code < 0:
            out_of_memory = "killed (signal 9), perhaps because memory ran out"
            how = out_of_memory if end.code == -signal.SIGKILL else f"ended by {signal.Signals(-end.code).name}"
            raise Failed(f"rank {rank} of {len(ends)}: its process was {how}; run again to resume.")
    first = {end.code: (rank, end) for rank, end in reversed([*enumerate(ends)])}
    if LATE in first:
        raise Failed(first[LATE][1].said.removeprefix("accord: ") or "the ranks waited too long for each other.")
    if STOPPED in first:
        raise Interrupted(first[STOPPED][1].said or "stopped before the first step; nothing was changed.")
    if LOST in first:
        rank, end = first[LOST]
        raise Failed(end.said or f"rank {rank} of {len(ends)} lost the others.")
    rank, end = next(((rank, end) for rank, end in enumerate(ends) if end.code not in (None, DONE)), (0, ends[0]))
    raise Failed(f"rank {rank} of {len(ends)}: its process ended with exit code {end.code}: {end.said}")
