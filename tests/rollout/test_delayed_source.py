"""Rollouts of old weights are those that these weights gave, and the newest weights come through unchanged."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from accord.rollout.delayed_source import DelayedTextSource
from accord.types import Generation, Rollout


class Echo:
    """A source whose replies' log-probs are the policy's weight, the scores the iteration."""

    def __init__(self, policy: nn.Linear) -> None:
        self.policy = policy

    def collect(self, iteration: int) -> Rollout:
        one = torch.ones(1, 1)
        logprobs = self.policy.weight.detach().clone()
        generation = Generation(((1,),), one.long(), one > 0, logprobs, one[0] > 0)
        return Rollout(generation, one[0].long(), one.long() * iteration, one, one[0] * iteration, {})


def trained(lag: int, rollouts: int, first: int = 0, state: Any = None) -> tuple[list[tuple[float, int]], Any]:
    """(weight that sampled, its version) of each rollout; the weight is the number of rollouts trained on."""
    policy = nn.Linear(1, 1, bias=False)
    source = DelayedTextSource(Echo(policy), policy, lag)
    if state is not None:
        source.load_state_dict(state)
    found = []
    for iteration in range(first, rollouts):
        nn.init.constant_(policy.weight, iteration)
        rollout = source.collect(iteration)
        assert policy.weight.item() == iteration
        assert float(rollout.scores) == iteration  # prompts and noise are those of the iteration
        found.append((rollout.generation.logprobs.item(), int(rollout.weight_versions)))
    return found, source.state_dict()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_rollout_comes_from_the_weights_of_so_many_rollouts_before(lag: int) -> None:
    found, state = trained(lag, 7)
    assert found == [(max(0, i - lag), max(0, i - lag)) for i in range(7)]
    assert len(state) == lag + 1


def test_a_resumed_source_goes_on_with_the_stored_weights() -> None:
    whole, _ = trained(2, 6)
    before, state = trained(2, 3)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    after, _ = trained(2, 6, 3, torch.load(buffer, weights_only=True))
    assert before + after == whole


def test_a_failure_while_sampling_leaves_the_newest_weights() -> None:
    policy = nn.Linear(1, 1, bias=False)
    echo = Echo(policy)
    source = DelayedTextSource(echo, policy, 1)
    for iteration in range(2):
        nn.init.constant_(policy.weight, iteration)
        if iteration:
            echo.policy = None  # type: ignore[assignment]
            with pytest.raises(AttributeError):
                source.collect(iteration)
        else:
            source.collect(iteration)
    assert policy.weight.item() == 1
