"""PPO's advantages, loss and gradient are TRL's where the two agree; TRL 1.12's formulas are written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo import ppo_loss
from accord.config.on_policy import PPOOptimizer
from accord.functional.advantages import token_gae
from accord.functional.masked import whiten
from accord.rollout.shaping import token_rewards
from accord.training.policy_loss import ActionScores
from accord.types import PolicyBatch, TextActions

B, T = 5, 9
PROMPTS = ((5, 6, 7), (5, 6, 7), (9,), tuple(range(10, 24)), (5, 6, 7))  # three rows share a prompt


# ------------------------------------------------------------------ TRL 1.12's formulas, from what its trainer does
def trl_advantages(
    scores: Tensor, old: Tensor, ref: Tensor, values: Tensor, lengths: Tensor, beta: float, lam: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(advantages, not whitened; returns; actions; value steps): a reply that ended is rewarded one step after its end,
    and the value of that step is trained too."""
    step = torch.arange(T).expand(B, T)
    last = lengths[:, None] - 1
    actions, value_steps = step <= last, step <= last + 1
    values = torch.where(value_steps, values, 0.0)
    rewards = torch.where(actions, -beta * (old - ref), 0.0)
    paid = torch.where(last[:, 0] + 1 < T, last[:, 0] + 1, last[:, 0])
    rewards[torch.arange(B), paid] += scores
    running, found = torch.zeros(B, dtype=values.dtype), []
    for t in reversed(range(T)):
        following = values[:, t + 1] if t < T - 1 else torch.zeros(B, dtype=values.dtype)
        running = rewards[:, t] + following - values[:, t] + lam * running
        found.append(running)
    advantages = torch.stack(found[::-1], 1)
    return advantages, advantages + values, actions, value_steps


def given(seed: int, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(B, T, dtype=torch.float64, generator=generator) * 0.3 for _ in range(5)]
    return numbers, torch.randn(B, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("lam", "early"), [(0.95, False), (1.0, True)])
def test_ppo_advantages_are_trls(lam: float, early: bool) -> None:
    """Full replies: the same at any lambda.  Replies that end early: the same at lambda 1, where it does not matter
    that TRL pays a step later.  TRL whitens by n - 1, accord by n."""
    lengths = torch.tensor([9, 1, 4, 2, 7]) if early else torch.full((B,), T)
    (old, ref, values, _, _), scores = given(3, lengths)
    mask = torch.arange(T) < lengths[:, None]
    theirs, _, actions, _ = trl_advantages(scores, old, ref, values, lengths, 0.05, lam)
    ours, _ = token_gae(token_rewards(scores, old, ref, mask, 0.05), values, mask, 1.0, lam)
    assert torch.equal(actions, mask)
    torch.testing.assert_close(ours.double()[mask], theirs[mask], rtol=1e-6, atol=1e-6)
    kept, n = theirs[mask], int(mask.sum())
    unbiased = (kept - kept.mean()) / math.sqrt(float(kept.var(correction=1)) + 1e-8)
    torch.testing.assert_close(
        whiten(ours.double(), mask)[mask], unbiased * math.sqrt(n / (n - 1)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("early", [False, True])
def test_ppo_loss_and_gradient_are_trls(early: bool) -> None:
    """On TRL's own advantages and returns; the value of the step after the end, which only TRL trains, is left out."""
    lengths = torch.tensor([9, 1, 4, 2, 7]) if early else torch.full((B,), T)
    (old, ref, values, moved, wandered), scores = given(4, lengths)
    advantages, returns, actions, _ = trl_advantages(scores, old, ref, values, lengths, 0.05, 0.95)
    kept = advantages[actions]
    advantages = torch.where(actions, (advantages - kept.mean()) / (kept.var() + 1e-8).sqrt(), 0.0)

    def masked_mean(x: Tensor) -> Tensor:
        return (x * actions).sum() / actions.sum()

    new, predicted = ((x + y).requires_grad_() for x, y in ((old, moved), (values, wandered)))
    ratio = torch.exp(torch.where(actions, new - old, 0.0))
    policy = masked_mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)))
    near = torch.clamp(predicted, values - 0.2, values + 0.2)
    value = 0.5 * masked_mean(torch.max((predicted - returns) ** 2, (near - returns) ** 2))
    (policy + 0.1 * value).backward()

    mine = [(x + y).requires_grad_() for x, y in ((old, moved), (values, wandered))]
    inputs = TextActions(PROMPTS, torch.zeros(B, T, dtype=torch.int64), actions, ref)
    batch = PolicyBatch(inputs, actions, old, advantages, values, returns)
    score = ActionScores(mine[0], torch.zeros(B, T), mine[1])
    output = ppo_loss(lambda _: score, PPOOptimizer(vf_coef=0.1), 0.2)(batch)
    (output.loss.total / output.loss.count).backward()
    assert output.metrics["policy_loss"].value() == pytest.approx(policy.item(), rel=1e-9)
    assert output.metrics["value_loss"].value() == pytest.approx(value.item(), rel=1e-9)
    for a, b in zip(mine, (new, predicted), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
