"""Log-probs, entropies and values of a packed minibatch are those of each text alone, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from accord.algorithms.ppo import score_texts
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.transformer import Transformer, small_transformer
from accord.rollout.collect import pack_texts, to_rows
from accord.types import TextActions

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
