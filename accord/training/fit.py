"""The loop that every stage shares: one optimiser step per batch; ``Run`` says when to log, save and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from accord.runtime.run import Run
from accord.types import LossOutput

B = TypeVar("B")


class Steps(Protocol):
    """What makes an optimiser step of a batch and an objective: an ``Updater``, or the quick one of plain PPO."""

    def step(self, batch: Sequence[Any], objective: Any) -> dict[str, float]: ...


def fit(
    run: Run,
    updater: Steps,
    batches: Iterable[Sequence[B]],
    objective: Callable[[B], LossOutput],
    save: Callable[[], None],
    after_step: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """One optimiser step for each batch; each batch is a sequence of micro-batches.

    ``save`` writes the resumable state; it is called at the run's cadence and before a stop.  Raises Interrupted.
    """
    for batch in batches:
        metrics = updater.step(batch, objective)
        if after_step is not None:
            after_step(metrics)
        run.tick(metrics)
        if run.should_save:
            save()
        run.check_stop()
