"""The order of rows in training, resumable from two numbers.

An epoch's batches depend only on the rows' lengths, the batch size, the seed and the epoch, so that resuming neither
skips nor repeats a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from accord.data.packing import length_buckets
from accord.runtime.seeds import derive


class Batches:
    """A batch sampler: yields lists of row indices, ``epochs`` times over all rows, from the current position on.

    The position advances when a batch is yielded, so save the state after the batch's update.  Rows of similar length
    share a batch.  A batch size beyond the data gives one batch of all rows.

    >>> batches = Batches([3, 1, 2, 9], batch_size=2, seed=0, epochs=2)
    >>> first = next(iter(batches))
    >>> len(batches), batches.state_dict()
    (4, {'epoch': 0, 'position': 1})
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epochs: int) -> None:
        if not len(lengths) or batch_size < 1 or epochs < 0:
            raise ValueError(f"{len(lengths)} rows, batch_size {batch_size}, epochs {epochs}: expected ≥ 1, ≥ 1, ≥ 0")
        self.lengths, self.batch_size, self.seed, self.epochs = lengths, batch_size, seed, epochs
        self.per_epoch = -(-len(lengths) // batch_size)
        self._epoch = self._position = 0

    def __len__(self) -> int:
        """Number of batches over all epochs, whatever the position."""
        return self.per_epoch * self.epochs

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch."""
        order = np.random.default_rng(derive(self.seed, "batches", epoch))
        return length_buckets(self.lengths, self.batch_size, order)

    def __iter__(self) -> Iterator[list[int]]:
        while self._epoch < self.epochs:
            batches = self.epoch(self._epoch)
            while self._position < len(batches):
                self._position += 1
                yield batches[self._position - 1]
            self._epoch, self._position = self._epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were yielded."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from ``state``.  Raises ValueError where these batches have no such position."""
        epoch, position = state["epoch"], state["position"]
        if not (0 <= epoch <= self.epochs and 0 <= position <= self.per_epoch):
            raise ValueError(
                f"epoch {epoch}, batch {position}: beyond {self.epochs} epochs of {self.per_epoch} batches; the data "
                "or the batch size differs from the interrupted run"
            )
        self._epoch, self._position = epoch, position
