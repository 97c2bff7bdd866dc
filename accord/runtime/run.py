"""Run: the folder, seeds, log file, metrics and progress of one stage, and *when* to log, save and stop."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from accord.errors import Interrupted
from accord.io.atomic import write_bytes, write_jsonl, write_text
from accord.io.readers import read_appended_rows
from accord.runtime import seeds

if TYPE_CHECKING:
    import torch

console = Console(highlight=False, soft_wrap=True)


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag that loops look at; the second one stops at once."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[signal.Signals, Any] = {}
        self._teller: threading.Thread | None = None

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: a notebook's worker, say
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._teller is not None:
            self._teller.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
        # In a thread: a signal comes between any two lines, those of a print or of an import among them.
        self._teller = threading.Thread(
            target=console.print, args=("stopping at the next step; once more stops at once",)
        )
        self._teller.start()


class Beat:
    """``progress.json`` in a stage's folder: how far it is, for whoever looks, from here or from another terminal.

    The first one is written as any file is; later ones are written over it at one go, filled up to one length, at most
    twice a second.  It stays where a stage is stopped or killed: then it says how far it was.
    """

    FILE, LENGTH, EVERY = "progress.json", 1024, 0.5

    def __init__(self, directory: Path, step: int, total: int) -> None:
        self.path, self.first, self.total = directory / self.FILE, step, total
        self.begun, self.next = time.time(), 0.0
        self.metrics: dict[str, float] = {}
        write_bytes(self.path, self._text(step))
        self._file = os.open(self.path, os.O_WRONLY)

    def note(self, step: int, metrics: Mapping[str, float], last: bool = False) -> None:
        """``metrics`` are shown with those of before; ``last``: now, whatever the time."""
        now = time.monotonic()
        if now < self.next and not last:
            return
        self.next = now + self.EVERY
        self.metrics |= {k: float(v) for k, v in metrics.items()}
        os.pwrite(self._file, self._text(step), 0)

    def _text(self, step: int) -> bytes:
        known = {"pid": os.getpid(), "step": step, "total": self.total, "first": self.first, "begun": self.begun}
        kept = dict(list(self.metrics.items())[-24:])
        text = json.dumps({**known, "updated": time.time(), "metrics": kept})
        while len(text) > self.LENGTH and kept:
            kept.popitem()
            text = json.dumps({**known, "updated": time.time(), "metrics": kept})
        return text.ljust(self.LENGTH).encode()

    def close(self) -> None:
        os.close(self._file)


class Run:
    """One stage's run: ``directory`` for results, ``logs`` for what happened.

    ``tick`` is called once for each optimiser step.  The run holds no tensors and no random state: every random
    draw comes from ``generator(purpose, counters)``, so that resuming needs only counters.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        logs: Path,
        seed: int,
        log_every: int,
        save_every: int,
        resume: bool = False,
        bar: bool = True,
    ) -> None:
        self.name, self.directory, self.logs, self.seed = name, directory, logs, seed
        self.log_every, self.save_every, self.resume = log_every, save_every, resume
        self.step = 0
        self.total_steps = 0
        self.started = time.monotonic()
        self.stop = StopSignal()
        self.key = ""
        self.resumable = True
        self.parents: dict[str, str] = {}  # config key: digest of what it names
        self.sources: dict[str, str] = {}  # config key: its path
        self.settings: dict[str, Any] = {}  # those that change results, inputs blanked
        directory.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logging.getLogger(f"accord.log.{name}.{id(self)}")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        handler = logging.FileHandler(logs / f"{name}.log", mode="a" if resume else "w", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._log.addHandler(handler)
        self._metrics = logs / "metrics.jsonl"
        if not resume:
            write_text(self._metrics, "")
            for old in logs.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer: Any = None
        self._progress: Progress | None = None
        self._bar = bar  # of its own; without it, a view of the whole pipeline shows how far this is
        self._beat: Beat | None = None

    # ---------------------------------------------------------------- words
    def say(self, text: str) -> None:
        """To the screen and into the log file."""
        for line in text.splitlines():
            self._log.info(line)
        (self._progress.console if self._progress else console).print(text, markup=False)

    def log_failure(self, error: BaseException) -> None:
        """The traceback, into the log file only."""
        self._log.error("failed", exc_info=error)

    def plan(self, lines: Mapping[str, str]) -> None:
        """The screen before training starts: what will happen, in words."""
        width = max(map(len, lines), default=0)
        self.say(f"── {self.name} " + "─" * max(3, 60 - len(self.name)))
        for what, text in lines.items():
            self.say(f"  {what:<{width}}  {text}")

    # ---------------------------------------------------------------- chance
    def derive(self, purpose: str, *counters: int) -> int:
        """A seed for one purpose at one moment, the same in every process and after every resume."""
        return seeds.derive(self.seed, purpose, *counters)

    def generator(self, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator:
        return seeds.generator(self.seed, purpose, *counters, device=device)

    # ---------------------------------------------------------------- steps
    def begin(self, total_steps: int, step: int = 0) -> None:
        """Starts counting at ``step`` of ``total_steps``; metrics of what will be done again are dropped.

        Of step s, the state's own, only the optimiser's line stays: what else is told there (a rollout, the closing
        figures) comes after the state is saved, so it will be told again.
        """
        self.total_steps, self.step = total_steps, step
        rows = read_appended_rows(self._metrics)
        before = [r for r in rows if r["step"] < step or (r["step"] == step and "learning_rate" in r)]
        write_jsonl(self._metrics, before)
        if self._beat:
            self._beat.close()
        self._beat = Beat(self.directory, step, total_steps)
        if console.is_terminal and self._bar:
            columns = ("[bold]{task.description}", "{task.fields[note]}")
            self._progress = Progress(
                TextColumn(columns[0]),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn(columns[1]),
                console=console,
                transient=True,
            )
            self._progress.start()
            self._progress.add_task(self.name, total=total_steps, completed=step, note="")

    def tick(self, metrics: Mapping[str, float]) -> None:
        """One optimiser step is done."""
        self.step += 1
        if self.step % self.log_every == 0 or self.step == self.total_steps or self.step == 1:
            self.record(metrics)
        if self._beat:
            self._beat.note(self.step, metrics, last=self.step == self.total_steps)
        if self._progress:
            note = "  ".join(f"{k} {v:.3g}" for k, v in list(metrics.items())[:3])
            self._progress.update(self._progress.task_ids[0], completed=self.step, note=note)

    def record(self, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Writes a line of metrics at the current step, to metrics.jsonl, TensorBoard and the log."""
        named = {f"{prefix}{k}": float(v) for k, v in metrics.items()}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **named}) + "\n")
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.logs))
        for key, value in named.items():
            self._writer.add_scalar(key, value, self.step)
        if self._beat:
            self._beat.metrics |= named  # of a rollout, say: told with the next step
        text = f"step {self.step}/{self.total_steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in named.items())
        self._log.info(text)
        if not console.is_terminal and (self.step in (1, self.total_steps) or self.step % (10 * self.log_every) == 0):
            console.print(f"  {self.name} {text}", markup=False)

    @property
    def should_save(self) -> bool:
        return self.step % self.save_every == 0 or self.stop.raised

    def check_stop(self) -> None:
        """Raises Interrupted if the user asked to stop; called after the state is saved."""
        if self.stop.raised:
            if self._beat:
                self._beat.note(self.step, {}, last=True)
            kept = "the state is saved." if self.resumable else "this stage keeps no state and will begin anew."
            raise Interrupted(f"{self.name}: stopped at step {self.step} of {self.total_steps}; {kept}")

    # ---------------------------------------------------------------- begin and end
    def __enter__(self) -> Run:
        self.stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.__exit__()
        if self._progress:
            self._progress.stop()
            self._progress = None
        if self._beat:
            self._beat.close()
            self._beat = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for handler in list(self._log.handlers):
            handler.close()
            self._log.removeHandler(handler)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def peak_rss_mb() -> float:
    """The most resident memory this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
