"""Losses with ties as an outcome: the papers' formulas, gradients by finite differences, and recovery from simulated votes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from accord.functional.losses.preference import bradley_terry_loss
from accord.functional.losses.ties import (
    LOGPROBS,
    TieModel,
    log_tie_of,
    log_tie_of_share,
    tie_loss,
    tie_parameter,
)
from accord.types import SoftLabels

MODELS: tuple[TieModel, ...] = ("rao_kupper", "davidson")


def by_the_paper(model: TieModel, a: float, b: float, parameter: float) -> tuple[float, float, float]:
    """P(win), P(tie), P(loss) of scores a and b, from the formulas as printed."""
    x, y = math.exp(a), math.exp(b)
    if model == "rao_kupper":
        win, loss = x / (x + parameter * y), y / (parameter * x + y)
        tie = (parameter**2 - 1) * x * y / ((x + parameter * y) * (parameter * x + y))
    else:
        root = parameter * math.sqrt(x * y)
        win, tie, loss = x / (x + y + root), root / (x + y + root), y / (x + y + root)
    return win, tie, loss


def soft(labels: list[float], weights: list[float] | None = None) -> SoftLabels:
    return SoftLabels(torch.tensor(labels), torch.tensor(weights or [1.0] * len(labels)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scores", [(0.0, 0.0), (1.3, -0.4), (-2.0, 0.5), (6.0, -6.0)])
@pytest.mark.parametrize("parameter", [1.001, 1.5, 4.0])
def test_probabilities_are_the_papers_and_sum_to_one(
    model: TieModel, scores: tuple[float, float], parameter: float
) -> None:
    a, b = scores
    log_tie = torch.tensor(log_tie_of(model, parameter), dtype=torch.float64)
    found = LOGPROBS[model](torch.tensor([a - b], dtype=torch.float64), log_tie)
    expected = by_the_paper(model, a, b, parameter)
    assert [float(x.exp()) for x in found] == pytest.approx(expected, rel=1e-9)
    assert sum(expected) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_without_ties_both_are_bradley_terry(model: TieModel) -> None:
    chosen, rejected = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([0.1, -1.0, 0.5])
    found = tie_loss(chosen, rejected, soft([1.0, 1.0, 1.0]), torch.tensor(-30.0), model)
    assert found.loss.value() == pytest.approx(bradley_terry_loss(chosen, rejected).loss.value(), rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_takes_each_rows_own_outcome_and_weight(model: TieModel) -> None:
    """Rows 1, 1/2, 0: minus the log of win, tie and loss, times 1, 2 and 3, over three rows."""
    a, b = [0.4, -0.2, 1.1], [0.0, 0.9, -0.6]
    out = tie_loss(
        torch.tensor(a),
        torch.tensor(b),
        soft([1.0, 0.5, 0.0], [1.0, 2.0, 3.0]),
        torch.tensor(log_tie_of(model, 1.7)),
        model,
    )
    logs = [math.log(by_the_paper(model, x, y, 1.7)[n]) for n, (x, y) in enumerate(zip(a, b, strict=True))]
    assert out.loss.value() == pytest.approx(-(logs[0] + 2 * logs[1] + 3 * logs[2]) / 3, rel=1e-5)
    assert int(out.loss.count) == 3
    assert out.metrics["accuracy"].value() == 0.5  # the first is right, the tie does not count, the third is wrong
    assert out.metrics["tie_share"].value() == pytest.approx(1 / 3)
    expected = np.mean([by_the_paper(model, x, y, 1.7)[1] for x, y in zip(a, b, strict=True)])
    assert out.metrics["tie_probability"].value() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_finite_differences(model: TieModel) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = [torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
    log_tie = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels = SoftLabels(torch.tensor([1.0, 0.5, 0.0, 0.5, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0]))

    def loss(a: Tensor, b: Tensor, tie: Tensor) -> Tensor:
        return tie_loss(a, b, labels, tie, model).loss.total

    assert torch.autograd.gradcheck(loss, (*scores, log_tie))


@pytest.mark.parametrize("model", MODELS)
def test_losses_of_micro_batches_add_up(model: TieModel) -> None:
    a, b, labels = torch.tensor([0.4, -0.2, 1.1]), torch.tensor([0.0, 0.9, -0.6]), [1.0, 0.5, 0.5]
    tie = torch.tensor(0.2)
    whole = tie_loss(a, b, soft(labels), tie, model).loss
    parts = [tie_loss(a[i : i + 1], b[i : i + 1], soft(labels[i : i + 1]), tie, model).loss for i in range(3)]
    torch.testing.assert_close((parts[0] + parts[1] + parts[2]).total, whole.total)


@pytest.mark.parametrize("model", MODELS)
def test_extreme_scores_give_finite_losses_and_gradients(model: TieModel) -> None:
    a = torch.tensor([200.0, -200.0, 0.0, 1e4], requires_grad=True)
    for log_tie in (-40.0, 0.0, 40.0):
        tie = torch.tensor(log_tie, requires_grad=True)
        total = tie_loss(a, -a.detach(), soft([1.0, 0.5, 0.0, 0.5]), tie, model).loss.total
        gradients = torch.autograd.grad(total, [a, tie])
        assert bool(total.isfinite())
        assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("model", MODELS)
def test_the_parameter_starts_where_equal_replies_tie_as_often_as_in_the_data(model: TieModel) -> None:
    log_tie = log_tie_of_share(30, 99)
    assert by_the_paper(model, 0.0, 0.0, tie_parameter(model, log_tie))[1] == pytest.approx(30.5 / 100, rel=1e-9)
    assert log_tie_of(model, tie_parameter(model, log_tie)) == pytest.approx(log_tie, rel=1e-9)
    assert math.isfinite(log_tie_of_share(0, 5))
    assert math.isfinite(log_tie_of_share(5, 5))


@pytest.mark.parametrize("model", MODELS)
def test_training_on_simulated_votes_recovers_the_parameter_that_maximum_likelihood_finds(model: TieModel) -> None:
    """12,000 votes on 12 replies: the loss, minimized by torch, finds the true parameter and scores, and the papers'
    likelihood, evaluated on a grid around it, is highest there."""
    truth, generator = 1.8, np.random.default_rng(5)
    scores = generator.normal(size=12)
    asked = [(i, j) for i in range(12) for j in range(12) if i < j]
    counts = {
        (i, j): generator.multinomial(12_000 // len(asked), by_the_paper(model, scores[i], scores[j], truth)).tolist()
        for i, j in asked
    }
    rows = [(i, j, label, n) for (i, j), c in counts.items() for label, n in zip((1.0, 0.5, 0.0), c, strict=True)]
    first, second = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    labels = SoftLabels(torch.tensor([r[2] for r in rows]), torch.tensor([float(r[3]) for r in rows]))
    learned = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    log_tie = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([learned, log_tie], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        mean = tie_loss(learned[first], learned[second], labels, log_tie, model).loss.total / 12_000
        mean.backward()
        return mean

    optimizer.step(closure)
    found = tie_parameter(model, float(log_tie.detach()))
    assert found == pytest.approx(truth, rel=0.05)
    centered = learned.detach().numpy() - float(learned.detach().mean())
    np.testing.assert_allclose(centered, scores - scores.mean(), atol=0.15)

    def likelihood(parameter: float) -> float:
        fitted = learned.detach().tolist()
        return sum(
            n * math.log(p)
            for (i, j), row in counts.items()
            for n, p in zip(row, by_the_paper(model, fitted[i], fitted[j], parameter), strict=True)
        )

    grid = [found * (1 + k / 200) for k in range(-10, 11)]
    assert max(grid, key=likelihood) == pytest.approx(found, rel=0.006)
