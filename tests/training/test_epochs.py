"""Training over epochs of a dataset: what every supervised stage shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from accord.config.common import Optimizer
from accord.errors import Interrupted
from accord.functional.masked import mean_of
from accord.runtime.run import Run
from accord.training.epochs import Epochs, forward_passes, train_epochs
from accord.training.last_metrics import LastMetrics
from accord.types import LossOutput

NewRun = Callable[..., Run]


def test_the_units_of_a_step_are_cut_into_forward_passes() -> None:
    assert list(forward_passes([3, 1, 2, 9, 4], 2)) == [[3, 1], [2, 9], [4]]
    assert list(forward_passes([3, 1, 2], 0)) == [[3, 1, 2]]


class Fit:
    """One weight fitted to seven numbers, and a record of what was packed."""

    def __init__(self) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.packed: list[list[int]] = []
        self.after: list[dict[str, float]] = []
        self.before = 0

    def data(self, micro: int) -> Epochs[Tensor]:
        def pack(units: Sequence[int]) -> Tensor:
            self.packed.append(list(units))
            return torch.tensor(units, dtype=torch.float32)[:, None]

        def loss(numbers: Tensor) -> LossOutput:
            return LossOutput(mean_of((self.model(torch.ones_like(numbers)) - numbers).square()), {})

        settings = Optimizer(batch_size=3, micro_batch_size=micro, num_epochs=2, learning_rate=0.1)
        return Epochs([1] * 7, pack, loss, settings)

    def train(self, run: Run, micro: int = 2) -> LastMetrics:
        def first() -> None:
            self.before += 1

        groups = [(list(self.model.parameters()), 0.1)]
        return train_epochs(run, self.model, groups, self.data(micro), first, self.after.append)


def test_every_unit_comes_once_an_epoch_in_passes_of_a_step(new_run: NewRun) -> None:
    fit = Fit()
    last = fit.train(new_run())
    for epoch in (fit.packed[:5], fit.packed[5:]):
        assert sorted(len(units) for units in epoch) == [1, 1, 1, 2, 2]  # of minibatches of 3, 3 and 1
        assert sorted(unit for units in epoch for unit in units) == list(range(7))
    assert len(fit.after) == 6
    assert last["loss"] == fit.after[-1]["loss"]
    assert fit.before == 1


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_stopped_at_any_step_ends_like_one_that_was_not(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = Fit()
    expected = whole.train(new_run("whole"))
    cut, run = Fit(), new_run("cut")

    def stopping(metrics: dict[str, float]) -> None:
        cut.after.append(metrics)
        run.stop.raised = len(cut.after) == stop

    groups = [(list(cut.model.parameters()), 0.1)]
    with pytest.raises(Interrupted):
        train_epochs(run, cut.model, groups, cut.data(2), after_step=stopping)
    resumed = Fit()
    found = resumed.train(new_run("cut", resume=True))
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert found == expected  # even where no step was left
    assert resumed.before == 0
    assert cut.after + resumed.after == whole.after


@pytest.mark.parametrize(("every", "expected"), [(0, [0, 6]), (2, [0, 2, 4, 6]), (4, [0, 4, 6]), (9, [0, 6])])
def test_held_out_metrics_come_before_the_first_step_when_due_and_after_the_last(
    new_run: NewRun, lines: Callable[[str], list[dict[str, float]]], every: int, expected: list[int]
) -> None:
    run, fit = new_run(), Fit()
    data = replace(fit.data(2), heldout=lambda: {"heldout/weight": fit.model.weight.item()}, eval_every=every)
    last = train_epochs(run, fit.model, [(list(fit.model.parameters()), 0.1)], data)
    rows = [row for row in lines("run") if "heldout/weight" in row]
    assert [row["step"] for row in rows] == expected
    assert rows[0]["heldout/weight"] == 0.0
    assert last["heldout/weight"] == rows[-1]["heldout/weight"] == fit.model.weight.item()
    unmeasured = Fit()
    assert unmeasured.train(new_run("other"))["loss"] == last["loss"]
    assert torch.equal(unmeasured.model.weight, fit.model.weight)
