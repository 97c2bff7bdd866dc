"""The values that flow between packages: what they check, how they are indexed, and that they move whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from accord.types import Generation, PolicyBatch, Rollout, TextActions, VectorActions

TENSORS = ("mask", "old_logprobs", "advantages", "values", "returns")
ROWS = torch.tensor([2, 0])


def text_batch(critic: bool) -> PolicyBatch:
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(3, 2, generator=generator) for _ in range(5)]
    inputs = TextActions(((1,), (2, 3), (4,)), torch.arange(6).view(3, 2), mask, numbers[4])
    return PolicyBatch(inputs, mask, *numbers[: 4 if critic else 2])


@pytest.mark.parametrize("critic", [True, False])
def test_indexing_a_batch_takes_the_rows_of_every_field(critic: bool) -> None:
    batch = text_batch(critic)
    some = batch[ROWS]
    assert len(some) == 2
    assert isinstance(some.inputs, TextActions)
    assert isinstance(batch.inputs, TextActions)
    assert some.inputs.prompts == ((4,), (1,))
    for name in ("responses", "mask", "ref_logprobs"):
        assert torch.equal(getattr(some.inputs, name), getattr(batch.inputs, name)[ROWS])
    assert list(batch.tensors()) == list(TENSORS if critic else TENSORS[:3])
    for name in TENSORS:
        whole, part = getattr(batch, name), getattr(some, name)
        assert (part is None) if whole is None else torch.equal(part, whole[ROWS])
    assert (some.values is None) is (some.returns is None) is (not critic)


def test_a_steps_observations_and_actions_stay_together() -> None:
    inputs = VectorActions(torch.arange(6.0).view(3, 2), torch.tensor([7, 8, 9]))
    column = torch.arange(3.0)[:, None]
    some = PolicyBatch(inputs, column >= 0, column, column)[ROWS].inputs
    assert isinstance(some, VectorActions)
    assert some.observations.tolist() == [[4, 5], [0, 1]]
    assert some.actions.tolist() == [9, 7]


@pytest.mark.parametrize("critic", [True, False])
def test_a_batch_moves_with_everything_in_it(critic: bool) -> None:
    """The meta device represents any other."""
    moved = text_batch(critic).to("meta")
    assert isinstance(moved.inputs, TextActions)
    found = [*moved.tensors().values(), moved.inputs.responses, moved.inputs.mask, moved.inputs.ref_logprobs]
    assert len(found) == (8 if critic else 6)
    assert all(tensor.device.type == "meta" for tensor in found)
    assert (moved.values is None) is (moved.returns is None) is (not critic)


@pytest.mark.parametrize("name", TENSORS)
def test_a_batch_refuses_a_field_of_another_shape(name: str) -> None:
    batch = text_batch(critic=True)
    with pytest.raises(ValueError, match=rf"{name}: shape \(3, 1\)" if name != "mask" else r"old_logprobs: shape"):
        replace(batch, **{name: getattr(batch, name)[:, :1]})
    if name == "mask":
        with pytest.raises(TypeError, match=r"mask: torch\.float32"):
            replace(batch, mask=batch.mask.float())


def rollout() -> Rollout:
    mask = torch.tensor([[True, True], [True, False]])
    generation = Generation(((1,), (2,)), torch.ones(2, 2, dtype=torch.int64), mask, torch.zeros(2, 2), mask[:, 0])
    versions = torch.zeros(2, 2, dtype=torch.int64)
    return Rollout(generation, torch.tensor([5, 6]), versions, torch.zeros(2, 2), torch.zeros(2), {})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("prompt_rows", torch.tensor([5]), ValueError),
        ("prompt_rows", torch.tensor([5.0, 6.0]), TypeError),
        ("weight_versions", torch.zeros(2, dtype=torch.int64), ValueError),
        ("weight_versions", torch.zeros(2, 2), TypeError),
        ("ref_logprobs", torch.zeros(2, 1), ValueError),
        ("scores", torch.zeros(2, 2), ValueError),
        ("readout", torch.zeros(2), ValueError),
    ],
)
def test_a_rollout_refuses_a_field_that_does_not_fit_its_replies(
    name: str, value: torch.Tensor, error: type[Exception]
) -> None:
    assert rollout().readout is None
    with pytest.raises(error, match=name):
        replace(rollout(), **{name: value})
