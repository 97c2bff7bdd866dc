"""Runs a stage in its own process: ``python -m accord.pipeline.worker``, which reads its job from stdin.

When stdin is closed, because the parent asks for it or has ended, the stage saves its state and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accord.config.common import Stage
from accord.config.load import build
from accord.errors import Interrupted, UserError, Waiting
from accord.pipeline.child import STOPPED, run_job
from accord.pipeline.failure import in_words
from accord.pipeline.lock import owner
from accord.pipeline.records import read_done
from accord.pipeline.stage import Outcome, run_stage
from accord.pipeline.task import folder, logs
from accord.stage_kinds.table import STAGE_KINDS

DONE, FAILED, WAITS = 0, 1, 3


class Killed(Exception):
    """The worker's process ended without an error message; ``opened``: after it had begun to write the stage's folder."""

    def __init__(self, words: str, opened: bool) -> None:
        super().__init__(words)
        self.opened = opened


class Worker:
    """The parent's side."""

    def __init__(self, kind: str, config: Stage, force: bool, journal: Path, threads: int, quiet: bool) -> None:
        self.name, self.directory, self.logs = folder(config, kind).name, folder(config, kind), logs(config, kind)
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed at its end)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment.setdefault(name, str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accord.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=self._stderr,
            env=environment,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches the worker only through us
        )
        assert self._process.stdin is not None
        job = {"kind": kind, "config": config.model_dump(mode="json"), "force": force, "journal": str(journal)}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has already ended; result() reports how
            pass

    def result(self) -> Outcome | None:
        """None while it runs.  Raises UserError, Waiting, Interrupted, or Killed."""
        code = self._process.poll()
        if code is None:
            return None
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines()
        self._stderr.close()
        if self._process.stdin and not self._process.stdin.closed:
            self.stop()
        if code == DONE and (done := read_done(self.directory)):
            return Outcome(self.name, False, done, self.directory)
        if code == STOPPED:
            raise Interrupted(said[-1] if said else f"{self.name}: stopped.")
        if code == WAITS and said:
            raise Waiting(said[-1])
        if code == FAILED and said:
            raise UserError(said[-1])
        opened = owner(self.directory).get("pid") == self._process.pid
        raise Killed(self._death(code, said, opened), opened)

    def stop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _death(self, code: int, said: list[str], opened: bool) -> str:
        path = self.logs / f"{self.name}.log"
        if said and opened:
            with path.open("a", encoding="utf-8") as log:
                log.write("\n".join(said) + "\n")
        if code == -signal.SIGKILL:
            return "its process was killed (signal 9), perhaps because memory ran out; run again to resume."
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        last = f"{path} has its last output" if opened else f"its last output: {said[-1] if said else 'nothing'}"
        return f"its process ended {how}; {last}. Run again to resume."


# ------------------------------------------------------------------------------------- the worker's side
def work(job: dict[str, Any]) -> int:
    """Runs the stage; the last line on stderr is its error."""
    config = build(STAGE_KINDS[job["kind"]].settings, job["config"], {}, "the job")
    try:
        run_stage(
            job["kind"], config, resume=True, reuse=True, force=job["force"], bar=False, journal=Path(job["journal"])
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except Waiting as wait:
        print(wait, file=sys.stderr)
        return WAITS
    except Exception as error:  # the parent reads it, and other stages still run
        place = logs(config, job["kind"])
        print(" ".join(in_words(error, place / f"{place.name}.log").split()), file=sys.stderr)
        return FAILED
    return DONE


if __name__ == "__main__":
    run_job(work)
