"""Run: seeds, log file, metrics and progress of one stage, and when to log, save and stop."""

from __future__ import annotations

import logging
import logging.handlers
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from accord.config.common import Parallel
from accord.errors import Interrupted, Planned
from accord.io.atomic import write_jsonl, write_text
from accord.io.finite_json import dumps
from accord.io.installation import install_command
from accord.io.records import read_metrics
from accord.plots.stage import StagePicture
from accord.runtime import seeds
from accord.runtime.console import console
from accord.runtime.optional import optional
from accord.runtime.progress_file import ProgressFile
from accord.runtime.stop_signal import STOPPING, StopSignal
from accord.runtime.tables import as_text, make_table

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """Which stage a run belongs to, where it writes, and what its result comes from."""

    name: str
    directory: Path
    """For results."""
    logs: Path
    seed: int
    key: str = ""
    """Digest of everything that can change the result; empty outside a pipeline."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Config key: digest of what it names."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Config key: path of what it names."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that change results, with the inputs blanked."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a run needs to know where several processes train together."""

    writes: bool
    """Whether this one writes files, logs and bars."""
    anywhere: Callable[[bool], bool]
    """Whether a flag is true in any of them; all call it together."""
    stop_words: str = STOPPING
    """What a signal to stop prints here; empty where another process prints it."""


class Run:
    """One stage's run: ``directory`` for results, ``logs`` for logs and metrics.

    Until ``open_folders``, which calls ``before_first_write``, the stage only reads: it opens and checks everything that
    it needs, and what it says is logged later.  ``tick`` is called once for each optimizer step.  ``bar`` shows a progress
    bar of its own, for a stage that no view of a whole pipeline shows.  The run holds no tensors and no random state: every
    random draw comes from ``generator(purpose, counters)``, so that resuming needs only counters.  ``ranks``: of several
    processes only one writes, and all stop at the same step.
    """

    def __init__(
        self,
        identity: StageIdentity,
        log_every: int,
        save_every: int,
        resume: bool = False,
        bar: bool = True,
        before_first_write: Callable[[], None] = lambda: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.name, self.directory, self.logs = identity.name, identity.directory, identity.logs
        self.seed, self.key = identity.seed, identity.key
        self.parents, self.sources, self.settings = identity.parents, identity.sources, identity.settings
        self.log_every, self.save_every, self.resume = log_every, save_every, resume
        self.step = 0
        self.total_steps = 0
        self.started = time.monotonic()
        self.stop = StopSignal(STOPPING if ranks is None else ranks.stop_words)
        self.read: dict[str, str] = {}
        """Digests of what the stage read besides its inputs, for the record in done.json."""
        self._resumable = True
        self.opened = False
        """Whether the folders are open for writing."""
        self.dry: Parallel | None = None
        """In a dry run, which ends with ``Planned`` where the stage would begin: how the stage would run."""
        self.decided: Mapping[str, str] = {}
        """Settings that the config left open, and what they are; lines of the plan."""
        self._before_first_write = before_first_write
        self.writes = ranks is None or ranks.writes
        """Whether this process writes the stage's files; of several ranks only rank 0 does."""
        self._anywhere = ranks.anywhere if ranks else lambda flag: flag
        self._log = logging.getLogger(f"accord.log.{self.name}.{id(self)}")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._unwritten = logging.handlers.MemoryHandler(2**20, logging.CRITICAL + 1, flushOnClose=False)
        self._log.addHandler(self._unwritten)
        self._metrics = self.logs / "metrics.jsonl"
        self._picture = StagePicture(self.logs, self.name)
        self._draws = True
        self._writer: Any = None
        self._writes_events = True
        self._optional: list[tuple[str, Callable[[], object]]] = []
        self._bar: Progress | None = None
        self._shows_bar = bar
        self._progress_file: ProgressFile | None = None

    # ---------------------------------------------------------------- the first write
    def open_folders(self) -> None:
        """From here on the stage's folders are written; a second call does nothing.

        ``begin`` and ``record`` call it; a stage that writes files before these calls it itself.  Raises Interrupted where
        the user has asked to stop, so that a stage that was stopped while it loaded leaves its folders as they were.
        """
        if self.opened:
            return
        if self.dry is not None:
            raise Planned(self.name)
        if not self.writes:
            self.opened = True
            return
        if self.stop.raised:
            raise Interrupted(f"{self.name}: stopped before its first step; nothing was changed.")
        self._before_first_write()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        mode = "a" if self.resume else "w"
        handler = logging.FileHandler(self.logs / f"{self.name}.log", mode=mode, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._unwritten.setTarget(handler)
        self._unwritten.flush()
        self._log.removeHandler(self._unwritten)
        self._log.addHandler(handler)
        if not self.resume:
            write_text(self._metrics, "")
            for old in [*self.logs.glob("events.out.tfevents.*"), self._picture.path]:
                old.unlink(missing_ok=True)
        self.opened = True

    # ---------------------------------------------------------------- output
    def say(self, text: str) -> None:
        """Prints a text and writes it to the log file."""
        if not self.writes:
            return
        for line in text.splitlines():
            self._log.info(line)
        (self._bar.console if self._bar else console).print(text, markup=False)

    def log_failure(self, error: BaseException) -> None:
        """Writes the traceback to the log file only."""
        self._log.error("failed", exc_info=error)

    def plan(self, lines: Mapping[str, str], details: Callable[[Parallel], str] | None = None) -> None:
        """Prints what the stage will do, before it starts; in a dry run ``details`` too, and raises Planned."""
        self.say(f"── {self.name} " + "─" * max(3, 60 - len(self.name)))
        self.say(
            as_text(make_table(["", ""], [(f"  {what}", text) for what, text in {**lines, **self.decided}.items()]))
        )
        if self.dry is not None:
            if details is not None:
                self.say(f"\n{details(self.dry)}")
            raise Planned(self.name)

    # ---------------------------------------------------------------- seeds
    def derive(self, purpose: str, *counters: int) -> int:
        """A seed for one purpose and counters, the same in every process and after every resume."""
        return seeds.derive(self.seed, purpose, *counters)

    def generator(self, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator:
        return seeds.generator(self.seed, purpose, *counters, device=device)

    # ---------------------------------------------------------------- steps
    def begin(self, total_steps: int, step: int = 0, *, resumable: bool = True) -> None:
        """Starts counting at ``step`` of ``total_steps``; metrics of steps that will be repeated are dropped.

        Of the saved step itself only the optimizer's line stays: other lines of that step (a rollout, the final
        metrics) come after the state is saved and will be logged again.  ``resumable``: whether the stage saves a
        state that a later run can continue from.
        """
        self.open_folders()
        self.total_steps, self.step, self._resumable = total_steps, step, resumable
        if not self.writes:
            return
        rows = read_metrics(self._metrics)
        before = [r for r in rows if r["step"] < step or (r["step"] == step and "learning_rate" in r)]
        write_jsonl(self._metrics, before)
        if step:
            console.print(f"  resumed at step {step} of {total_steps}", markup=False)
        if self._progress_file:
            self._progress_file.close()
        self._progress_file = ProgressFile(self.directory, step, total_steps)
        if console.is_terminal and self._shows_bar:
            columns = ("[bold]{task.description}", "{task.fields[note]}")
            self._bar = Progress(
                TextColumn(columns[0]),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn(columns[1]),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self.name, total=total_steps, completed=step, note="")

    def tick(self, metrics: Mapping[str, float]) -> None:
        """Counts one optimizer step; logs and shows its metrics."""
        self.step += 1
        if self.step % self.log_every == 0 or self.step == self.total_steps or self.step == 1:
            self.record(metrics)
        if self._progress_file:
            self._progress_file.update(self.step, metrics, last=self.step == self.total_steps)
        if self._bar:
            note = "  ".join(f"{k} {v:.3g}" for k, v in list(metrics.items())[:3])
            self._bar.update(self._bar.task_ids[0], completed=self.step, note=note)

    def record(self, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Writes a line of metrics at the current step, to metrics.jsonl, TensorBoard and the log."""
        self.open_folders()
        if not self.writes:
            return
        named = {f"{prefix}{k}": float(v) for k, v in metrics.items()}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(dumps({"step": self.step, **named}) + "\n")
        if self._writes_events:
            self._writes_events = False
            with optional("the rest of TensorBoard's events", self.say):
                self._writes_events = self._write_events(named)
        if self._progress_file:
            self._progress_file.metrics |= named  # of a rollout, say: shown with the next step
        text = f"step {self.step}/{self.total_steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in named.items())
        self._log.info(text)
        if not console.is_terminal and (self.step in (1, self.total_steps) or self.step % (10 * self.log_every) == 0):
            console.print(f"  {self.name} {text}", markup=False)

    def _write_events(self, metrics: Mapping[str, float]) -> bool:
        """Writes TensorBoard's events, with the stage's name before each metric's; False where its writer is missing."""
        if self._writer is None:
            try:
                from tensorboardX import SummaryWriter
            except ModuleNotFoundError as error:
                if error.name != "tensorboardX":
                    raise
                words = f"no events for TensorBoard: tensorboardX is not installed ({install_command('tensorboard')})"
                self._log.info(words)
                if self._shows_bar:  # a pipeline would print it once for each stage
                    console.print(words, markup=False)
                return False

            self._writer = SummaryWriter(str(self.logs))
        for key, value in metrics.items():
            self._writer.add_scalar(f"{self.name}/{key}", value, self.step)
        return True

    def draw(self) -> None:
        """Draws the curves that there are until now; an error costs the picture, and is printed once."""
        if self.writes and self._draws:
            self._draws = False
            with optional(f"the picture {self._picture.path}", self.say):
                self._picture.update()
                self._draws = True

    def write_later(self, what: str, write: Callable[[], object]) -> None:
        """Leaves something that the stage can do without, a picture for example, until the stage is recorded as done."""
        if not self.writes:
            return
        self._optional.append((what, write))

    def write_optional(self) -> None:
        """Draws the curves and writes what was left until now; an error costs only what it is about."""
        if self.opened and self.writes:
            with optional(f"the picture {self._picture.path}", self.say):
                if self._picture.draw():
                    self.say(f"curves: {self._picture.path}")
        for what, write in self._optional:
            with optional(what, self.say):
                write()
        self._optional.clear()

    @property
    def should_save(self) -> bool:
        return self._anywhere(self.stop.raised) or self.step % self.save_every == 0

    def check_stop(self) -> None:
        """Raises Interrupted if the user asked to stop; called after the state is saved, by all ranks."""
        if self._anywhere(self.stop.raised):
            if self._progress_file:
                self._progress_file.update(self.step, {}, last=True)
            state = "the state is saved." if self._resumable else "this stage saves no state and will start again."
            raise Interrupted(f"{self.name}: stopped at step {self.step} of {self.total_steps}; {state}")

    # ---------------------------------------------------------------- begin and end
    def __enter__(self) -> Run:
        self.stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.__exit__()
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._progress_file:
            self._progress_file.close()
            self._progress_file = None
        if self._writer is not None:
            with optional("the rest of TensorBoard's events", self.say):
                self._writer.close()
            self._writer = None
        for handler in list(self._log.handlers):
            handler.close()
            self._log.removeHandler(handler)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started
