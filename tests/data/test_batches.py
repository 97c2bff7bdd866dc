from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.batches import Batches

settings_of_batches = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 9), min_size=1, max_size=25),
        "batch_size": st.integers(1, 30),
        "seed": st.integers(0, 3),
        "epochs": st.integers(0, 3),
    }
)


@given(settings_of_batches, st.data())
def test_resuming_gives_the_same_rest(how: dict[str, object], data: st.DataObject) -> None:
    whole = list(Batches(**how))  # type: ignore[arg-type]
    assert len(whole) == len(Batches(**how))  # type: ignore[arg-type]
    k = data.draw(st.integers(0, len(whole)))
    stopped = Batches(**how)  # type: ignore[arg-type]
    assert list(itertools.islice(stopped, k)) == whole[:k]
    state = json.loads(json.dumps(stopped.state_dict()))
    random.seed(data.draw(st.integers(0, 5)))  # no global generator plays a part
    np.random.seed(data.draw(st.integers(0, 5)))
    resumed = Batches(**how)  # type: ignore[arg-type]
    resumed.load_state_dict(state)
    assert list(resumed) == whole[k:]
    assert list(stopped) == whole[k:]


@given(settings_of_batches)
def test_each_epoch_sees_each_row_once(how: dict[str, object]) -> None:
    batches = Batches(**how)  # type: ignore[arg-type]
    n, size = len(batches.lengths), batches.batch_size
    for epoch in range(batches.epochs):
        rows = Counter(itertools.chain(*batches.epoch(epoch)))
        assert rows == Counter(range(n))
        assert all(len(b) <= size for b in batches.epoch(epoch))


def test_a_state_saved_between_batches_resumes_with_the_next_batch() -> None:
    batches = Batches([1] * 6, 2, seed=0, epochs=2)
    assert batches.state_dict() == {"epoch": 0, "position": 0}
    iterator = iter(batches)
    states = []
    for _ in range(4):
        next(iterator)
        states.append(batches.state_dict())
    assert states == [{"epoch": 0, "position": p} for p in (1, 2, 3)] + [{"epoch": 1, "position": 1}]
    assert len(list(iterator)) == 2
    assert batches.state_dict() == {"epoch": 2, "position": 0}
    assert list(batches) == []


def test_epochs_and_seeds_give_different_orders() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(itertools.chain(*Batches([1] * 50, 5, seed, 2).epoch(epoch)))

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert orders == [order(0, 0), order(0, 1), order(1, 0)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_batch_size_beyond_the_data_takes_all_rows() -> None:
    batches = Batches([3, 1, 2], 100, seed=0, epochs=2)
    assert [sorted(batch) for batch in batches] == [[0, 1, 2]] * 2
    assert len(batches) == 2


def test_rows_of_one_length_go_together() -> None:
    lengths = [1, 9] * 32
    assert all(len({lengths[i] for i in batch}) == 1 for batch in Batches(lengths, 8, 0, 2))


def test_impossible_sizes_and_states_are_refused() -> None:
    for arguments in (([], 1, 0, 1), ([1], 0, 0, 1), ([1], 1, 0, -1)):
        with pytest.raises(ValueError, match="expected"):
            Batches(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch 3: beyond 2 epochs of 2 batches"):
        Batches([1] * 4, 2, 0, 2).load_state_dict({"epoch": 1, "position": 3})


def test_the_order_is_the_same_on_every_machine() -> None:
    """Frozen: a change of it would break every resumable run."""
    assert Batches([1] * 8, 2, seed=0, epochs=1).epoch(0) == FROZEN
    orders = {str(Batches([1] * 8, 2, seed, 2).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


FROZEN = [[5, 0], [4, 6], [1, 7], [2, 3]]
