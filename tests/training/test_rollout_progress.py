"""Progress through a rollout: minibatches are a function of their seed, and a saved state holds all that is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accord.functional.kl import AdaptiveKL, FixedKL
from accord.training.rollout_progress import RolloutProgress, RolloutStats, minibatches
from accord.types import PolicyBatch, TextActions, VectorActions

STATS = RolloutStats(9.0, 10, {"score": 0.5})


def text_batch(critic: bool = True) -> PolicyBatch:
    """Five replies of at most three tokens; reply i answers the prompt (i, i + 1)."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 1])[:, None]
    numbers = [torch.randn(5, 3, generator=generator) for _ in range(5)]
    prompts = tuple((i, i + 1) for i in range(5))
    inputs = TextActions(prompts, torch.randint(5, 9, (5, 3), generator=generator), mask, numbers[4])
    return PolicyBatch(inputs, mask, *numbers[: 4 if critic else 2])


def vector_batch() -> PolicyBatch:
    inputs = VectorActions(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.arange(5))
    return PolicyBatch(inputs, **text_batch().tensors())


def rows(size: int, micro: int, seed: int) -> list[list[list[int]]]:
    """The rows of each forward pass of each minibatch."""
    batch = text_batch()
    parts = minibatches(batch, size, micro, seed)
    return [[[p[0] for p in part.inputs.prompts] for part in minibatch] for minibatch in parts]  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------- minibatches
def test_every_row_comes_once_in_an_order_of_the_seed() -> None:
    found = [rows(2, 0, seed) for seed in range(4)]
    for minibatch in found:
        assert [len(passes) for passes in minibatch] == [1, 1, 1]
        flat = [row for passes in minibatch for part in passes for row in part]
        assert [len(part) for passes in minibatch for part in passes] == [2, 2, 1]
        assert sorted(flat) == list(range(5))
    assert rows(2, 0, 0) == found[0]
    assert len({str(order) for order in found}) > 2


def test_forward_passes_cut_a_minibatch_and_change_none_of_its_rows() -> None:
    whole, cut = rows(3, 0, 7), rows(3, 1, 7)
    assert [[len(part) for part in passes] for passes in whole] == [[3], [2]]
    assert [[len(part) for part in passes] for passes in cut] == [[1, 1, 1], [1, 1]]
    assert [[row for part in passes for row in part] for passes in cut] == [passes[0] for passes in whole]


@pytest.mark.parametrize("size", [5, 8])
def test_a_minibatch_of_all_rows_is_the_batch_itself(size: int) -> None:
    batch = text_batch()
    ((only,),) = minibatches(batch, size, 0, 3)
    assert only is batch
    ((first, second),) = minibatches(batch, size, 3, 3)  # in two passes
    assert (len(first), len(second)) == (3, 2)


# ------------------------------------------------------------------------------------- the saved state
def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


@pytest.mark.parametrize("kl", [FixedKL(0.3), AdaptiveKL(0.2, 6.0, 100)], ids=["fixed", "adaptive"])
@pytest.mark.parametrize(
    "batch", [text_batch(), text_batch(critic=False), vector_batch()], ids=["text", "bare", "vector"]
)
def test_a_state_in_the_middle_of_a_rollout_restores_everything(
    tmp_path: Path, kl: FixedKL | AdaptiveKL, batch: PolicyBatch
) -> None:
    progress = RolloutProgress(kl)
    progress.iteration = 4
    progress.begin_rollout(batch, STATS)
    progress.minibatch, progress.stopped_early = 3, True
    resumed = RolloutProgress(type(kl)(**{**kl.state(), "beta": 77.0}))
    resumed.load_state_dict(through_a_file(progress.state_dict(), tmp_path / "state.pt"))
    assert (resumed.iteration, resumed.minibatch, resumed.stopped_early) == (4, 3, True)
    assert resumed.stats == STATS
    assert resumed.kl == kl
    assert resumed.batch is not None
    assert resumed.batch.tensors().keys() == batch.tensors().keys()
    for name, tensor in batch.tensors().items():
        assert torch.equal(resumed.batch.tensors()[name], tensor)
    assert type(resumed.batch.inputs) is type(batch.inputs)
    for name in type(batch.inputs).__slots__:
        ours, theirs = getattr(resumed.batch.inputs, name), getattr(batch.inputs, name)
        assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
    resumed.finish_rollout()
    progress.finish_rollout()
    assert resumed.kl == progress.kl
    assert (resumed.kl.beta > kl.beta) is isinstance(kl, AdaptiveKL)  # the KL measured before the stop counts


def test_a_rollout_begins_with_no_minibatch_done() -> None:
    progress = RolloutProgress(FixedKL(0.1))
    progress.begin_rollout(text_batch(), STATS)
    progress.minibatch, progress.stopped_early = 6, True
    progress.finish_rollout()
    assert progress.iteration == 1
    assert progress.batch is None
    progress.begin_rollout(text_batch(), STATS)
    assert (progress.minibatch, progress.stopped_early) == (0, False)


def test_between_rollouts_the_state_holds_no_batch(tmp_path: Path) -> None:
    progress = RolloutProgress(FixedKL(0.1))
    progress.begin_rollout(text_batch(), STATS)
    progress.finish_rollout()
    resumed = RolloutProgress(FixedKL(0.1))
    resumed.load_state_dict(through_a_file(progress.state_dict(), tmp_path / "state.pt"))
    assert resumed.batch is None
    assert resumed.iteration == 1
