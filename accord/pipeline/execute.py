"""Runs stages in the order of their dependencies, one after another here or in parallel in their own processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from accord.errors import Interrupted, Waiting
from accord.pipeline.plan import Planned
from accord.pipeline.stage import Outcome
from accord.runtime.stop_signal import StopSignal


class View(Protocol):
    """Shows the progress of a pipeline."""

    def started(self, name: str) -> None: ...

    def ended(self, name: str, outcome: Outcome) -> None: ...

    def failed(self, name: str, words: str) -> None: ...

    def waits(self, name: str, words: str) -> None: ...

    def not_run(self, name: str, cause: str) -> None: ...


class Work(Protocol):
    """A stage that runs in its own process."""

    def result(self) -> Outcome | None:
        """None while it runs.  Raises the stage's exception, or Interrupted."""
        ...

    def stop(self) -> None:
        """Asks the stage to save its state and end."""
        ...


@dataclass(slots=True)
class Ended:
    """How the stages ended."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """Name: what it waits for."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Name: why, as in "sft failed": the stage that it needs."""


Start = Callable[[Planned, bool], "Outcome | Work"]
Words = Callable[[Planned, Exception], str]


def execute(
    stages: Sequence[Planned], start: Start, jobs: int, view: View, words: Words, elsewhere: bool = False
) -> Ended:
    """Runs every stage whose dependencies are done.

    After a failure, and while a stage waits for people, the stages that do not need it still run.

    ``start(stage, alone)`` runs a stage to its end, or starts it in another process; ``alone``: no other stage could run in
    the meantime.  ``elsewhere``: stages run on other machines, and none is alone.  Raises Interrupted, after all running
    stages have saved their states.
    """
    ended, waiting = Ended(), list(stages)
    running: dict[str, tuple[Planned, Work]] = {}

    def settle(stage: Planned, get: Callable[[], Outcome | Work]) -> None:
        """Records a stage's outcome, its failure, or its running work."""
        running.pop(stage.name, None)
        try:
            result = get()
        except Interrupted:
            raise
        except Waiting as wait:
            ended.waiting[stage.name] = str(wait)
            view.waits(stage.name, str(wait))
            return
        except Exception as error:  # the failure of one stage must not stop the others
            ended.failures[stage.name] = words(stage, error)
            view.failed(stage.name, ended.failures[stage.name])
            return
        if isinstance(result, Outcome):
            ended.outcomes[stage.name] = result
            view.ended(stage.name, result)
        else:
            running[stage.name] = (stage, result)

    def step() -> None:
        _skip_dependents(waiting, ended, view)
        while len(running) < jobs and (ready := _ready(waiting, ended, {s.name for s in stages})):
            alone = not elsewhere and (jobs == 1 or (len(ready) == 1 and not running))
            waiting.remove(ready[0])
            view.started(ready[0].name)
            settle(ready[0], partial(start, ready[0], alone))
            _skip_dependents(waiting, ended, view)
        assert running or not waiting, "a stage waits for one that cannot run"
        for stage, work in list(running.values()):
            settle(stage, partial(_poll, work))

    if jobs == 1 and not elsewhere:
        while waiting:
            step()
        return ended
    with StopSignal() as stop:
        try:
            while (waiting or running) and not stop.raised:
                step()
                time.sleep(0.02 if running else 0)
        finally:
            stopped = _stop_all(running)
    if stop.raised:
        raise Interrupted(f"{', '.join(stopped) or 'between two stages'}: stopped; the state is saved.")
    return ended


def _poll(work: Work) -> Outcome | Work:
    """The work's result, or the work itself while it runs."""
    return work.result() or work


def _ready(waiting: Sequence[Planned], ended: Ended, all_names: set[str]) -> list[Planned]:
    return [s for s in waiting if all(n in ended.outcomes or n not in all_names for n in s.needs)]


def _skip_dependents(waiting: list[Planned], ended: Ended, view: View) -> None:
    """Removes stages that need one that failed or waits for people."""
    for stage in list(waiting):
        causes = {**{n: f"{n} waits for people" for n in ended.waiting}, **{n: f"{n} failed" for n in ended.failures}}
        cause = next((n for n in stage.needs if n in causes or n in ended.not_run), None)
        if cause is not None:
            waiting.remove(stage)
            ended.not_run[stage.name] = ended.not_run.get(cause) or causes[cause]
            view.not_run(stage.name, ended.not_run[stage.name])


def _stop_all(running: dict[str, tuple[Planned, Work]]) -> list[str]:
    """Stops all running stages and waits for them; returns their names."""
    for _, work in running.values():
        work.stop()
    names = list(running)
    for _, work in running.values():
        while True:
            try:
                if work.result() is not None:
                    break
            except (Exception, KeyboardInterrupt):  # its own record says how it ended
                break
            time.sleep(0.02)
    return names
