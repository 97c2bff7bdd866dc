"""Stages in the order of their needs, one after another here or several at once in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from accord.errors import Interrupted
from accord.pipeline.plan import Planned
from accord.pipeline.stage import Outcome
from accord.runtime.stop_signal import StopSignal


class View(Protocol):
    """Whoever shows how it goes."""

    def started(self, name: str) -> None: ...

    def ended(self, name: str, outcome: Outcome) -> None: ...

    def failed(self, name: str, words: str) -> None: ...

    def not_run(self, name: str, cause: str) -> None: ...


class Work(Protocol):
    """A stage that runs in a process of its own."""

    def result(self) -> Outcome | None:
        """None while it runs.  Raises what the stage failed with, and Interrupted where it was stopped."""
        ...

    def stop(self) -> None:
        """Asks it to save its state and end."""
        ...


@dataclass(slots=True)
class Ended:
    """What became of the stages."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    """Name: the stage that failed before it."""


Start = Callable[[Planned, bool], "Outcome | Work"]
Words = Callable[[Planned, Exception], str]


def execute(stages: Sequence[Planned], start: Start, jobs: int, view: View, words: Words) -> Ended:
    """Runs every stage whose needs are done; where one fails, those that do not need it go on.

    ``start(stage, alone)`` runs a stage to its end, or begins it in another process; ``alone``: nothing else could run
    meanwhile.  Raises Interrupted, when all that ran has saved its state.
    """
    ended, waiting = Ended(), list(stages)
    running: dict[str, tuple[Planned, Work]] = {}

    def settle(stage: Planned, get: Callable[[], Outcome | Work]) -> None:
        """Takes a stage's result, its failure, or the work that has just begun."""
        running.pop(stage.name, None)
        try:
            result = get()
        except Interrupted:
            raise
        except Exception as error:  # one stage's failure, of whatever kind, must not cost the others
            ended.failures[stage.name] = words(stage, error)
            view.failed(stage.name, ended.failures[stage.name])
            return
        if isinstance(result, Outcome):
            ended.outcomes[stage.name] = result
            view.ended(stage.name, result)
        else:
            running[stage.name] = (stage, result)

    def step() -> None:
        _set_aside(waiting, ended, view)
        while len(running) < jobs and (ready := _ready(waiting, ended, {s.name for s in stages})):
            alone = jobs == 1 or (len(ready) == 1 and not running)
            waiting.remove(ready[0])
            view.started(ready[0].name)
            settle(ready[0], partial(start, ready[0], alone))
            _set_aside(waiting, ended, view)
        assert running or not waiting, "a stage waits for what will not come"
        for stage, work in list(running.values()):
            settle(stage, partial(_looked_at, work))

    if jobs == 1:
        while waiting:
            step()
        return ended
    with StopSignal() as stop:
        try:
            while (waiting or running) and not stop.raised:
                step()
                time.sleep(0.02 if running else 0)
        finally:
            stopped = _stopped(running)
    if stop.raised:
        raise Interrupted(f"{', '.join(stopped) or 'between two stages'}: stopped; what was begun is saved.")
    return ended


def _looked_at(work: Work) -> Outcome | Work:
    """Its result, or the work itself while it runs."""
    return work.result() or work


def _ready(waiting: Sequence[Planned], ended: Ended, all_names: set[str]) -> list[Planned]:
    return [s for s in waiting if all(n in ended.outcomes or n not in all_names for n in s.needs)]


def _set_aside(waiting: list[Planned], ended: Ended, view: View) -> None:
    """Those that need what failed are not run."""
    for stage in list(waiting):
        cause = next((n for n in stage.needs if n in ended.failures or n in ended.not_run), None)
        if cause is not None:
            waiting.remove(stage)
            ended.not_run[stage.name] = ended.not_run.get(cause, cause)
            view.not_run(stage.name, ended.not_run[stage.name])


def _stopped(running: dict[str, tuple[Planned, Work]]) -> list[str]:
    """Asks all that runs to stop, and waits for it."""
    for _, work in running.values():
        work.stop()
    names = list(running)
    for _, work in running.values():
        while True:
            try:
                if work.result() is not None:
                    break
            except (Exception, KeyboardInterrupt):  # it ended, however; its own record says how
                break
            time.sleep(0.02)
    return names
