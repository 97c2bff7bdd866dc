"""Soft labels and weights in the losses of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from accord.functional.losses.preference import bradley_terry_loss, dpo_loss
from accord.types import LossOutput, SoftLabels

CHOSEN, REJECTED = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.7, -0.3])
Loss = Callable[[Tensor, Tensor, SoftLabels | None], LossOutput]


def soft(labels: list[float], weights: list[float] | None = None) -> SoftLabels:
    return SoftLabels(torch.tensor(labels), torch.tensor(weights or [1.0] * len(labels)))


def dpo(chosen: Tensor, rejected: Tensor, labels: SoftLabels | None, smoothing: float = 0.0) -> LossOutput:
    return dpo_loss(chosen, rejected, torch.zeros(3), torch.zeros(3), 0.7, smoothing, labels)


def bradley_terry(chosen: Tensor, rejected: Tensor, labels: SoftLabels | None) -> LossOutput:
    return bradley_terry_loss(chosen, rejected, soft=labels)


@pytest.mark.parametrize(("loss", "beta"), [(bradley_terry, 1.0), (dpo, 0.7)])
def test_the_loss_is_the_cross_entropy_of_the_label_times_the_weight(loss: Loss, beta: float) -> None:
    labels, weights = [1.0, 0.7, 0.5], [1.0, 2.0, 0.25]
    out = loss(CHOSEN, REJECTED, soft(labels, weights))
    expected = 0.0
    for d, y, w in zip((beta * (CHOSEN - REJECTED)).tolist(), labels, weights, strict=True):
        p = 1 / (1 + math.exp(-d))
        expected -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
    assert out.loss.value() == pytest.approx(expected / 3, rel=1e-6)
    assert int(out.loss.count) == 3


@pytest.mark.parametrize("loss", [bradley_terry, dpo])
def test_labels_and_weights_of_one_change_no_bit(loss: Loss) -> None:
    results = []
    for labels in (None, soft([1.0, 1.0, 1.0])):
        chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
        out = loss(chosen, rejected, labels)
        results.append([out.loss.total, *torch.autograd.grad(out.loss.total, [chosen, rejected])])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("loss", [bradley_terry, dpo])
def test_a_tie_pulls_the_scores_together(loss: Loss) -> None:
    chosen = CHOSEN.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(chosen, REJECTED, soft([0.5] * 3)).loss.total, chosen)
    assert torch.equal(gradient.sign(), (CHOSEN - REJECTED).sign())
    equal = REJECTED.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(equal, REJECTED, soft([0.5] * 3)).loss.total, equal)
    assert torch.equal(gradient, torch.zeros(3))


@pytest.mark.parametrize("loss", [bradley_terry, dpo])
def test_a_label_is_worth_as_many_rows_as_it_says(loss: Loss) -> None:
    """Three votes for chosen and one against: one row with label 3/4 and weight 4, or four rows."""
    d = torch.tensor([0.8, 0.8, 0.8, 0.8])
    one = loss(d[:3], torch.zeros(3), soft([0.75] * 3, [4.0, 0.0, 0.0])).loss.total
    each = loss(d[:3], torch.zeros(3), None).loss.total + loss(-d[:3], torch.zeros(3), None).loss.total / 3
    torch.testing.assert_close(one, each)


def test_smoothing_comes_after_the_label() -> None:
    out = dpo(CHOSEN, REJECTED, soft([0.8, 1.0, 0.5]), smoothing=0.1)
    expected = dpo(CHOSEN, REJECTED, soft([0.8 * 0.9 + 0.2 * 0.1, 0.9, 0.5]))
    torch.testing.assert_close(out.loss.total, expected.loss.total)


def test_ties_are_not_part_of_the_accuracy() -> None:
    """Right, tie, and wrong by its label of 0.2."""
    assert bradley_terry(CHOSEN, REJECTED, soft([1.0, 0.5, 0.2])).metrics["accuracy"].value() == 0.5


def test_the_center_is_weighted_too() -> None:
    weighted = bradley_terry_loss(CHOSEN, REJECTED, center=0.3, soft=soft([1.0] * 3, [2.0] * 3)).loss.total
    torch.testing.assert_close(weighted, 2 * bradley_terry_loss(CHOSEN, REJECTED, center=0.3).loss.total)
