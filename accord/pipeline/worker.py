"""A stage in a process of its own: ``python -m accord.pipeline.worker``, which reads what to run from its input.

When that input ends, because the run that started it asks for it or has ended, the stage saves its state and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from accord.config.common import Stage
from accord.config.load import build
from accord.errors import Interrupted, UserError
from accord.pipeline.failure import in_words
from accord.pipeline.records import read_done
from accord.pipeline.stage import Outcome, run_stage
from accord.pipeline.task import folder, logs
from accord.stage_kinds.table import STAGE_KINDS

DONE, FAILED, STOPPED = 0, 1, 130


class Killed(Exception):
    """The worker's process ended without saying why."""


class Worker:
    """The starting side."""

    def __init__(self, kind: str, config: Stage, force: bool, journal: Path, threads: int, quiet: bool) -> None:
        self.name, self.directory, self.logs = folder(config, kind).name, folder(config, kind), logs(config, kind)
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed at its end)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment.setdefault(name, str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "accord.pipeline.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=self._said,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to hand on, once
        )
        assert self._process.stdin is not None
        job = {"kind": kind, "config": config.model_dump(mode="json"), "force": force, "journal": str(journal)}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended already; result() says how
            pass

    def result(self) -> Outcome | None:
        """None while it runs.  Raises UserError, Interrupted, or Killed."""
        code = self._process.poll()
        if code is None:
            return None
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        self._said.close()
        if self._process.stdin and not self._process.stdin.closed:
            self.stop()
        if code == DONE and (done := read_done(self.directory)):
            return Outcome(self.name, False, done, self.directory)
        if code == STOPPED:
            raise Interrupted(said[-1] if said else f"{self.name}: stopped.")
        if code == FAILED and said:
            raise UserError(said[-1])
        raise Killed(self._death(code, said))

    def stop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _death(self, code: int, said: list[str]) -> str:
        if said:
            with (self.logs / f"{self.name}.log").open("a", encoding="utf-8") as log:
                log.write("\n".join(said) + "\n")
        if code == -signal.SIGKILL:
            return "its process was killed (signal 9), as the system does where memory runs out; run again to go on."
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}; {self.logs / f'{self.name}.log'} has its last words. Run again to go on."


# ------------------------------------------------------------------------------------- the working side
def _watch_input() -> None:
    """The end of the input asks the stage to stop."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def work(job: dict[str, Any]) -> int:
    """Runs the stage; the last line on stderr is what went wrong."""
    config = build(STAGE_KINDS[job["kind"]].settings, job["config"], {}, "the job")
    try:
        run_stage(
            job["kind"], config, resume=True, reuse=True, force=job["force"], bar=False, journal=Path(job["journal"])
        )
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except Exception as error:  # the run that started this reads it, and the other stages go on
        place = logs(config, job["kind"])
        print(" ".join(in_words(error, place / f"{place.name}.log").split()), file=sys.stderr)
        return FAILED
    return DONE


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STOPPED))  # before the stage's own handler is there
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch_input, daemon=True).start()
    code = work(job)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread waits on the input still


if __name__ == "__main__":
    main()
