"""The optimizer steps that every stage shares: one step per batch; ``Run`` says when to log, save and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from accord.runtime.run import Run
from accord.training.checkpoint import Checkpoint
from accord.training.updater import Uncounted
from accord.types import LossOutput

B = TypeVar("B")


class StepTaker(Protocol):
    """Takes one optimizer step on a batch and an objective: ``Updater`` or ``NumpyUpdater``."""

    def step(self, batch: Sequence[Any], objective: Any) -> dict[str, float]: ...


def finish_step(run: Run, checkpoint: Checkpoint, metrics: dict[str, float]) -> None:
    """Logs one optimizer step, saves the state where it is due, and ends the run where the user asked to stop.

    Raises Interrupted after the state is saved.
    """
    run.tick(metrics)
    if run.should_save:
        checkpoint.save(run.step)
        run.draw()
        run.check_stop()  # only here: a signal that comes after the state could be saved ends the next step


def fit(
    run: Run,
    updater: StepTaker,
    batches: Iterable[Sequence[B | Uncounted[B]]],
    objective: Callable[[B], LossOutput],
    checkpoint: Checkpoint,
    after_step: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """One optimizer step for each batch; each batch is a sequence of micro-batches.

    ``after_step`` runs before the step is logged and saved.  Raises Interrupted.
    """
    for batch in batches:
        metrics = updater.step(batch, objective)
        if after_step is not None:
            after_step(metrics)
        finish_step(run, checkpoint, metrics)
