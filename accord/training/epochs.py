"""Training over epochs of a dataset: the batches, the updater and the saved state of every supervised stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from accord.config.common import Optimizer
from accord.data.batches import Batches
from accord.runtime.run import Run
from accord.training.checkpoint import Checkpoint, Resumable
from accord.training.fit import fit
from accord.training.last_metrics import LastMetrics
from accord.training.updater import Updater
from accord.types import LossOutput

B = TypeVar("B")
Groups = Sequence[tuple[Sequence[nn.Parameter], float]]
"""Parameters with their peak learning rates."""


@dataclass(frozen=True, slots=True)
class Epochs(Generic[B]):
    """The data of a supervised stage, its loss and its settings."""

    lengths: Sequence[int]  # tokens of each unit of data: a text, a pair, or all pairs of a prompt
    pack: Callable[[Sequence[int]], B]  # the named units as one forward pass's batch
    loss: Callable[[B], LossOutput]
    settings: Optimizer
    precision: str = "float32"
    heldout: Callable[[], Mapping[str, float]] | None = None  # metrics on held-out rows
    eval_every: int = 0  # steps between them; 0: before the first step and after the last one only


def train_epochs(
    run: Run,
    model: nn.Module,
    groups: Groups,
    data: Epochs[B],
    before_first_step: Callable[[], None] = lambda: None,
    after_step: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> LastMetrics:
    """Trains to the end of the last epoch, from the saved state where the run resumes; returns the last step's metrics.

    With held-out metrics after the last step, where ``data`` measures them.  ``before_first_step`` is skipped where the
    run resumes from a saved state.
    """
    settings = data.settings
    batches = Batches(data.lengths, settings.batch_size, run.seed, settings.num_epochs)
    updater = Updater(groups, settings, len(batches), data.precision)
    last = LastMetrics()
    parts: dict[str, Resumable] = {"model": model, "updater": updater, "data": batches, "metrics": last}
    checkpoint = Checkpoint(run.directory / "state.pt", run.key, parts)
    start = checkpoint.restore() if run.resume else 0
    if start == 0:
        before_first_step()
    run.begin(len(batches), start)

    def measure() -> None:
        """Held-out metrics of the current step: after its state is saved, so that a resumed run measures them again."""
        figures = data.heldout() if data.heldout else {}
        if figures:
            run.record(figures)
        if run.step == run.total_steps:
            last.update(figures)

    def steps() -> Iterator[list[B]]:
        for units in batches:
            if run.step == 0 or (data.eval_every and run.step % data.eval_every == 0):
                measure()
            yield [data.pack(indices) for indices in forward_passes(units, settings.micro_batch_size)]

    def keep_metrics(metrics: dict[str, float]) -> None:
        last.update(metrics)
        after_step(metrics)

    fit(run, updater, steps(), data.loss, checkpoint, keep_metrics)
    measure()
    return last


def forward_passes(units: Sequence[int], micro_batch_size: int) -> Iterator[list[int]]:
    """The units of one step, cut into forward passes of at most ``micro_batch_size``; 0: one pass."""
    size = micro_batch_size or len(units)
    for i in range(0, len(units), size):
        yield list(units[i : i + size])
