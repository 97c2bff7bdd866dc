"""The terms of a policy's loss: each is the loss that it names, over the batch's valid actions, with its weight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from accord.functional.losses.policy import entropy_bonus, kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from accord.training.policy_loss import (
    ActionScores,
    ClippedSurrogate,
    EntropyBonus,
    LossTerm,
    PolicyLoss,
    ReferenceKL,
    ValueLoss,
)
from accord.types import LossOutput, PolicyBatch, TextActions, VectorActions

MASK = torch.arange(3) < torch.tensor([3, 1, 2, 3])[:, None]
METRICS = {"policy_loss", "value_loss", "clip_fraction", "approx_kl", "ratio", "value", "entropy", "reference_kl"}


def numbers(count: int, seed: int) -> list[Tensor]:
    """(4, 3) each; NaN under the mask."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 4, 3, generator=generator, dtype=torch.float64)
    return list(drawn.masked_fill(~MASK, math.nan))


def batch() -> PolicyBatch:
    old, advantages, values, returns, ref = numbers(5, 0)
    inputs = TextActions(((1,),) * 4, torch.zeros(4, 3, dtype=torch.int64), MASK, ref)
    return PolicyBatch(inputs, MASK, old, advantages, values, returns)


def scores() -> ActionScores:
    return ActionScores(*(x.requires_grad_() for x in numbers(3, 1)))


def expected(term: LossTerm) -> LossOutput:
    """The term from the functions of tensors."""
    new, rows = scores(), batch()
    assert rows.values is not None
    assert rows.returns is not None
    assert new.values is not None
    assert isinstance(rows.inputs, TextActions)
    return {
        ClippedSurrogate: lambda: ppo_policy_loss(new.logprobs, rows.old_logprobs, rows.advantages, MASK, 0.3),
        ValueLoss: lambda: ppo_value_loss(new.values, rows.values, rows.returns, MASK, 0.25),
        EntropyBonus: lambda: entropy_bonus(new.entropy, MASK),
        ReferenceKL: lambda: kl_penalty_loss(new.logprobs, rows.inputs.ref_logprobs, MASK, "k2"),
    }[type(term)]()


TERMS = (ClippedSurrogate(0.3), ValueLoss(0.25), EntropyBonus(), ReferenceKL("k2"))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: type(term).__name__)
def test_a_term_is_the_loss_it_names(term: LossTerm) -> None:
    found, known = term(scores(), batch()), expected(term)
    assert torch.equal(found.loss.total, known.loss.total)
    assert int(found.loss.count) == int(MASK.sum())
    assert known.metrics.keys() <= found.metrics.keys()
    for name, mean in known.metrics.items():
        assert found.metrics[name].value() == mean.value()


def test_policy_and_value_loss_are_logged_by_name() -> None:
    for term, name in ((TERMS[0], "policy_loss"), (TERMS[1], "value_loss")):
        output = term(scores(), batch())
        assert output.metrics[name].value() == output.loss.value()
        assert not output.metrics[name].total.requires_grad


def test_a_value_clip_of_zero_clips_nothing() -> None:
    new, rows = scores(), batch()
    output = ValueLoss(0.0)(new, rows)
    assert new.values is not None
    assert rows.returns is not None
    assert output.loss.value() == pytest.approx(float((new.values - rows.returns)[MASK].detach().square().mean() / 2))


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    weights = (0.7, 0.4, 0.02, 0.6)
    seen: list[object] = []

    def score(inputs: object) -> ActionScores:
        seen.append(inputs)
        return scores()

    rows = batch()
    output = PolicyLoss(score, list(zip(weights, TERMS, strict=True)))(rows)
    assert seen == [rows.inputs]  # scored once for all terms
    total = sum(weight * float(expected(term).loss.total.detach()) for weight, term in zip(weights, TERMS, strict=True))
    assert float(output.loss.total.detach()) == pytest.approx(total, rel=1e-12)
    assert int(output.loss.count) == int(MASK.sum())
    assert output.metrics.keys() >= METRICS


def test_an_entropy_that_is_only_logged_has_no_gradient() -> None:
    for metric_only in (False, True):
        new = scores()
        output = EntropyBonus(metric_only)(new, batch())
        assert output.metrics["entropy"].value() == pytest.approx(float(new.entropy.detach()[MASK].mean()))
        assert output.loss.total.requires_grad is not metric_only


def test_the_kl_in_the_loss_is_refused_without_the_references_logprobs() -> None:
    inputs = VectorActions(torch.zeros(4, 5), torch.zeros(4))
    steps = PolicyBatch(inputs, *(x[:, :1] for x in batch().tensors().values()))
    one = ActionScores(*(x[:, :1] for x in numbers(3, 1)))
    with pytest.raises(TypeError, match="reference's log-probs, which only text has"):
        ReferenceKL("k2")(one, steps)


def test_the_value_loss_is_refused_without_a_critic() -> None:
    whole, rows = scores(), batch()
    for new, some in (
        (replace(whole, values=None), rows),
        (whole, replace(rows, values=None)),
        (whole, replace(rows, returns=None)),
    ):
        with pytest.raises(ValueError, match="the value loss needs a critic"):
            ValueLoss(0.2)(new, some)
        for term in (TERMS[0], TERMS[2], TERMS[3]):  # the others need none
            assert math.isfinite(term(new, some).loss.value())
