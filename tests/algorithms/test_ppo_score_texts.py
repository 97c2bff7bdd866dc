"""PPO's fast paths give the numbers and gradients of the plain ones; its losses are TRL's where the two agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo import ppo_loss, score_texts
from accord.config.on_policy import PPOOptimizer
from accord.functional.advantages import token_gae
from accord.functional.masked import whiten
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.transformer import Transformer, small_transformer
from accord.rollout.collect import pack_texts, to_rows
from accord.rollout.shaping import token_rewards
from accord.training.policy_loss import ActionScores
from accord.types import PolicyBatch, TextActions

VOCAB, B, T = 64, 5, 9
PROMPTS = ((5, 6, 7), (5, 6, 7), (9,), tuple(range(10, 24)), (5, 6, 7))  # three rows share a prompt


def replies() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([9, 1, 4, 2, 7])
    mask = torch.arange(T) < lengths[:, None]
    return torch.randint(3, VOCAB, (B, T), generator=torch.Generator().manual_seed(0)) * mask, mask


def policy_of(critic: str) -> LanguageActorCritic:
    torch.manual_seed(1)
    model = LanguageActorCritic(small_transformer(32, 3, VOCAB, 1, 0), critic)  # type: ignore[arg-type]
    torch.nn.init.normal_(model.value_head.linear.weight)  # type: ignore[union-attr, arg-type]
    for name, weight in model.policy.named_parameters():  # type: ignore[attr-defined]
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.15)
    return model.double()


def plain_row(model: Transformer, prompt: tuple[int, ...], reply: list[int]) -> Tensor:
    """(t, D): states in which the tokens of one reply were chosen, its text alone in a row of its own."""
    packed, _ = pack_texts([prompt], torch.tensor([reply]), torch.ones(1, len(reply), dtype=torch.bool))
    states: Tensor = model.forward_plain(packed)
    return states[len(prompt) - 1 : -1]


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_scores_and_gradients_are_those_of_each_text_alone(critic: str) -> None:
    responses, mask = replies()
    weights = torch.randn(3, int(mask.sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    quick, plain = policy_of(critic), policy_of(critic)
    packed, chosen = pack_texts(PROMPTS, responses, mask)
    scores = quick.score(packed, chosen, 0.7)
    found = torch.stack([scores.logprobs, scores.entropy, scores.values])
    (found * weights).sum().backward()

    rows: list[Tensor] = []
    trunk = plain.policy if critic == "shared" else plain.critic_backbone
    assert isinstance(plain.policy, Transformer)
    assert isinstance(trunk, Transformer)
    for b in range(B):
        reply = responses[b][mask[b]].tolist()
        logp = (plain_row(plain.policy, PROMPTS[b], reply) @ plain.policy.embed_tokens.weight.T / 0.7).log_softmax(-1)
        values = plain.value_head.linear(plain_row(trunk, PROMPTS[b], reply)).squeeze(-1)  # type: ignore[union-attr, operator]
        rows.append(torch.stack([logp[torch.arange(len(reply)), reply], -(logp.exp() * logp).sum(-1), values]))
    expected = torch.cat(rows, 1)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for (name, a), (_, b_) in zip(quick.named_parameters(), plain.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert b_.grad is not None, name
        torch.testing.assert_close(a.grad, b_.grad, rtol=1e-8, atol=1e-8 * float(b_.grad.abs().max()), msg=name)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_reference_needs_no_entropy(temperature: float) -> None:
    responses, mask = replies()
    policy = policy_of("shared")
    packed, chosen = pack_texts(PROMPTS, responses, mask)
    with torch.no_grad():
        expected = policy.score(packed, chosen, temperature).logprobs
        found = reply_logprobs(policy.policy, packed, chosen, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="temperature"):
        reply_logprobs(policy.policy, packed, chosen, 0.0)


# ------------------------------------------------------------------ TRL 1.12's formulas, from what its trainer does
def trl_advantages(
    scores: Tensor, old: Tensor, ref: Tensor, values: Tensor, lengths: Tensor, beta: float, lam: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(advantages, not whitened; returns; actions; value steps): a reply that ended is paid one step behind its end,
    and the value of that step is learnt too."""
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
    chance = torch.Generator().manual_seed(seed)
    numbers = [torch.randn(B, T, dtype=torch.float64, generator=chance) * 0.3 for _ in range(5)]
    return numbers, torch.randn(B, dtype=torch.float64, generator=chance)


@pytest.mark.parametrize(("lam", "early"), [(0.95, False), (1.0, True)])
def test_advantages_are_trls(lam: float, early: bool) -> None:
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
def test_loss_and_gradient_are_trls(early: bool) -> None:
    """On TRL's own advantages and returns; of the value's, the step behind the end, which only TRL learns, left out."""
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


def test_a_minibatch_scores_as_its_rows_do() -> None:
    responses, mask = replies()
    policy = policy_of("separate").float()
    inputs = TextActions(PROMPTS, responses, mask, torch.zeros(B, T))
    whole = score_texts(policy, 0.9, inputs)
    for b in range(B):
        alone = score_texts(policy, 0.9, inputs[torch.tensor([b])])
        for name in ("logprobs", "entropy", "values"):
            a, expected = getattr(alone, name)[0], getattr(whole, name)[b]
            torch.testing.assert_close(a[mask[b]], expected[mask[b]], rtol=1e-4, atol=1e-4)
    assert not bool(whole.logprobs[~mask].any())
    assert to_rows(whole.values[mask], mask).shape == (B, T)
