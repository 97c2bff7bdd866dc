"""Training over epochs of a dataset: the batches, the updater and the saved state of every supervised stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from accord.config.common import Optimizer
from accord.data.batches import Batches
from accord.distributed import mesh
from accord.runtime.run import Run
from accord.training.checkpoint import Checkpoint, Resumable
from accord.training.fit import fit
from accord.training.last_metrics import LastMetrics
from accord.training.updater import Uncounted, Updater
from accord.types import LossOutput

B = TypeVar("B")
T = TypeVar("T")
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
    imbalance = 1.0

    def measure() -> None:
        """Held-out metrics of the current step: after its state is saved, so that a resumed run measures them again."""
        figures = data.heldout() if data.heldout else {}
        if figures:
            run.record(figures)
        if run.step == run.total_steps:
            last.update(figures)

    def steps() -> Iterator[list[B | Uncounted[B]]]:
        nonlocal imbalance
        for units, packed in zip(batches, packed_steps(data, batches), strict=True):
            if run.step == 0 or (data.eval_every and run.step % data.eval_every == 0):
                measure()
            imbalance = _imbalance(units, data.lengths)
            yield packed

    def keep_metrics(metrics: dict[str, float]) -> None:
        if mesh.size() > 1:
            metrics["imbalance"] = imbalance
        last.update(metrics)
        after_step(metrics)

    fit(run, updater, steps(), data.loss, checkpoint, keep_metrics)
    measure()
    return last


def packed_steps(data: Epochs[B], batches: Batches) -> Iterator[list[B | Uncounted[B]]]:
    """This rank's forward passes of each step from the position of ``batches`` on, which does not move.

    With several ranks the next step is packed while this one is computed.
    """
    ahead = Batches(data.lengths, data.settings.batch_size, batches.seed, batches.epochs)
    ahead.load_state_dict(batches.state_dict())
    packed = (_pack(data, units) for units in ahead)
    return prefetched(packed) if mesh.size() > 1 else packed


def _pack(data: Epochs[B], units: Sequence[int]) -> list[B | Uncounted[B]]:
    passes = share_of_step(units, data.lengths, data.settings.micro_batch_size)
    return [data.pack(indices) if counted else Uncounted(data.pack(indices)) for indices, counted in passes]


def share_of_step(
    units: Sequence[int], lengths: Sequence[int], micro_batch_size: int
) -> Iterator[tuple[list[int], bool]]:
    """This rank's share of a step's units, cut into forward passes, and whether a pass counts.

    All ranks run equally many: one that has fewer units repeats the step's first unit without counting it.
    """
    if mesh.size() == 1:
        yield from ((part, True) for part in forward_passes(units, micro_batch_size))
        return
    shares = mesh.shares([lengths[unit] for unit in units], mesh.size())
    passes = [list(forward_passes([units[i] for i in sorted(share)], micro_batch_size)) for share in shares]
    mine = passes[mesh.rank()]
    yield from ((part, True) for part in mine)
    yield from [([units[0]], False)] * (max(map(len, passes)) - len(mine))


def _imbalance(units: Sequence[int], lengths: Sequence[int]) -> float:
    """Tokens of the rank with the most in a step, over the ranks' mean."""
    sizes = [lengths[unit] for unit in units]
    most = max(sum(sizes[i] for i in share) for share in mesh.shares(sizes, mesh.size()))
    return most * mesh.size() / max(sum(sizes), 1)


def forward_passes(units: Sequence[int], micro_batch_size: int) -> Iterator[list[int]]:
    """The units of one step, cut into forward passes of at most ``micro_batch_size``; 0: one pass."""
    size = micro_batch_size or max(len(units), 1)
    for i in range(0, len(units), size):
        yield list(units[i : i + size])


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, each of which a thread makes while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
