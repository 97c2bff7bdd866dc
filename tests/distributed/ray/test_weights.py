"""A worker's weights are the learner's, bit for bit in the dtype of the transfer, however they came."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from accord.distributed.ray.weights import (
    LONGEST_CHAIN,
    Publisher,
    Received,
    changes,
    digest,
    flat_weights,
    load_flat,
    size_of,
)


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    made.register_module("tied", made[0])
    return made


def test_each_parameter_is_sent_once_and_comes_back_bit_for_bit() -> None:
    flat = flat_weights(model(0), "float32")
    assert len(flat) == 5 * 3 + 3 + 3 + 3
    other = model(1)
    load_flat(other, flat)
    assert all(torch.equal(a, b) for a, b in zip(model(0).parameters(), other.parameters(), strict=True))
    assert digest(flat_weights(other, "float32")) == digest(flat) != digest(flat_weights(model(1), "float32"))


def test_bfloat16_halves_the_bytes_and_rounds_as_torch_does() -> None:
    flat = flat_weights(model(0), "bfloat16")
    assert size_of(flat) * 2 == size_of(flat_weights(model(0), "float32"))
    other = model(1)
    load_flat(other, flat)
    for sent, received in zip(model(0).parameters(), other.parameters(), strict=True):
        assert torch.equal(sent.bfloat16().float(), received)


def test_a_model_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="24 numbers for a model of 6"):
        load_flat(nn.Linear(2, 2), flat_weights(model(0), "float32"))


def test_a_delta_holds_exactly_the_numbers_whose_bits_changed() -> None:
    old = np.array([0.0, 1.0, np.nan, 3.0], np.float32).view(np.uint32)
    new = np.array([-0.0, 1.0, np.nan, 4.0], np.float32).view(np.uint32)
    delta = changes(old, new)
    assert delta.places.tolist() == [0, 3]
    assert delta.values.view(np.float32).tolist() == [0.0, 4.0]
    assert np.signbit(delta.values.view(np.float32)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_that_skip_versions_or_come_late_have_the_same_weights(
    cluster: Any, dtype: Literal["float32", "bfloat16"]
) -> None:
    learner, publisher = model(0), Publisher("delta")
    steady, hasty, sizes = Received(model(1)), Received(model(2)), []
    for version in range(LONGEST_CHAIN + 4):
        with torch.no_grad():
            learner[0].weight[0, version % 5] += 1.0  # type: ignore[index, union-attr, operator]
        flat = flat_weights(learner, dtype)
        weights, size = publisher.publish(version, flat)
        sizes.append(size)
        steady.take(weights)
        late = Received(model(3))
        late.take(weights)
        if version % 3 == 0:
            hasty.take(weights)
            assert np.array_equal(hasty._flat, flat)
        assert np.array_equal(steady._flat, flat)
        assert np.array_equal(late._flat, flat)
        assert steady.version == late.version == version
    assert max(sizes[1 : LONGEST_CHAIN + 1]) < sizes[0], "changes alone are sent"
    assert sizes[LONGEST_CHAIN + 1] == sizes[0], "a chain of deltas ends, so that a new worker need not read them all"


def test_an_older_version_can_be_taken_again(cluster: Any) -> None:
    """Work of a worker that died may be done by one that has newer weights."""
    publisher, learner, received = Publisher("delta"), model(0), Received(model(1))
    first, _ = publisher.publish(0, flat_weights(learner, "float32"))
    before = flat_weights(learner, "float32")
    with torch.no_grad():
        learner[0].weight[0, 0] += 1.0  # type: ignore[index, union-attr, operator]
    second, _ = publisher.publish(1, flat_weights(learner, "float32"))
    received.take(second)
    received.take(first)
    assert np.array_equal(received._flat, before)
