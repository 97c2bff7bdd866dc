"""From prompts to what the PPO loss sees: held against loops over single replies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from accord.data.tokenizer import small_tokenizer
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic, reply_logprobs
from accord.models.open import small_backbone
from accord.rollout.collect import collect, to_ppo_batch
from accord.rollout.generate import Decoding
from accord.rollout.score import FunctionReward, Replies, WeightedReward
from accord.types import Generation, Packed, Rollout, TextActions

TOKENIZER = small_tokenizer()
TEXTS = ["what is the sea?", "hi", "what is the sky?", "what is the sea?"]
PROMPTS = [tuple(TOKENIZER.encode(f"<user>{t}<assistant>")) for t in TEXTS]
END = TOKENIZER.encode("e")[0]  # a letter is drawn often enough to end some replies


def tiny(seed: int) -> Backbone:
    torch.manual_seed(seed)
    backbone = small_backbone("mamba", 32, 2, 50, TOKENIZER.eos_id, TOKENIZER.pad_id)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                parameter.mul_(2)
    return backbone


def length(prompts: list[str], texts: list[str]) -> list[float]:
    return [float(len(t)) for t in texts]


def policy_of(critic: str) -> LanguageActorCritic:
    policy = LanguageActorCritic(tiny(0), critic)  # type: ignore[arg-type]
    nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(1))
    return policy


def rollout_of(
    critic: str = "shared", *, samples: int = 3, chunk: int = 4, temperature: float = 0.8, recompute: bool = False
) -> tuple[Rollout, dict[str, float], LanguageActorCritic]:
    policy = policy_of(critic)
    decoding = Decoding(9, END, TOKENIZER.pad_id, temperature)
    generator = torch.Generator().manual_seed(2)
    reward = WeightedReward(((1.0, FunctionReward("length", length)), (0.5, FunctionReward("zero", zeros))))
    rollout, metrics = collect(
        policy, tiny(1), reward, TOKENIZER, PROMPTS, TEXTS, decoding, generator, samples, chunk, recompute
    )
    return rollout, metrics, policy


def zeros(prompts: list[str], texts: list[str]) -> list[float]:
    return [0.0] * len(texts)


@torch.no_grad()
def alone(policy: LanguageActorCritic, reference: Backbone, generation: Generation, row: int) -> tuple[Tensor, Tensor]:
    """Reference log-probs and values of one reply, from one text without company."""
    prompt, reply = list(generation.prompts[row]), generation.replies()[row]
    packed = Packed.of([prompt + reply])
    chosen = torch.arange(len(prompt), len(prompt) + len(reply))
    return reply_logprobs(reference, packed, chosen, 0.8), policy.score(packed, chosen, 0.8).values


@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_reference_and_values_are_those_of_each_reply_alone(critic: str, chunk: int) -> None:
    rollout, metrics, policy = rollout_of(critic, chunk=chunk)
    generation, reference = rollout.generation, tiny(1)
    assert metrics == {}
    assert generation.prompts == tuple(p for p in PROMPTS for _ in range(3))
    assert 0 < int(generation.ended.sum()) < 12
    for row, n in enumerate(generation.lengths.tolist()):
        ref, values = alone(policy, reference, generation, row)
        torch.testing.assert_close(rollout.ref_logprobs[row, :n], ref, rtol=0, atol=1e-5)
        torch.testing.assert_close(rollout.values[row, :n], values, rtol=0, atol=1e-4)
        assert (rollout.ref_logprobs[row, n:] == 0).all()
        assert (rollout.values[row, n:] == 0).all()
    assert rollout.scores.tolist() == [len(TOKENIZER.decode(r)) for r in generation.replies()]
    assert set(rollout.terms) == {"length", "zero"}


def test_the_reward_sees_the_prompt_that_each_reply_answers() -> None:
    seen: list[Replies] = []

    def spy(replies: Replies) -> dict[str, Tensor]:
        seen.append(replies)
        return {"none": torch.zeros(len(replies.texts))}

    decoding = Decoding(5, END, TOKENIZER.pad_id)
    generator = torch.Generator().manual_seed(0)
    rollout, _ = collect(policy_of("shared"), tiny(0), spy, TOKENIZER, PROMPTS, TEXTS, decoding, generator, 2, 4, False)
    (replies,) = seen
    assert list(replies.prompts) == [t for t in TEXTS for _ in range(2)]
    assert tuple(replies.prompt_tokens) == rollout.generation.prompts
    assert list(replies.tokens) == rollout.generation.replies()
    assert list(replies.texts) == [TOKENIZER.decode(r) for r in rollout.generation.replies()]


def test_logprobs_taken_anew_agree_and_say_by_how_much() -> None:
    kept, _, _ = rollout_of()
    anew, metrics, _ = rollout_of(recompute=True)
    assert torch.equal(anew.generation.responses, kept.generation.responses)
    torch.testing.assert_close(anew.generation.logprobs, kept.generation.logprobs, rtol=0, atol=1e-5)
    difference = (anew.generation.logprobs - kept.generation.logprobs).abs()
    assert metrics["mismatch_max"] == pytest.approx(float(difference.max()), abs=1e-9)
    assert 0 <= metrics["mismatch_mean"] <= metrics["mismatch_max"] < 1e-5


def test_the_kl_to_the_policy_itself_is_zero_at_the_first_rollout() -> None:
    """Trap 33."""
    decoding = Decoding(9, END, TOKENIZER.pad_id, 0.8)
    rollout, _ = collect(
        policy_of("shared"), tiny(0), FunctionReward("zero", zeros), TOKENIZER, PROMPTS, TEXTS, decoding,
        torch.Generator().manual_seed(0), 2, 4, False,
    )  # fmt: skip
    torch.testing.assert_close(rollout.ref_logprobs, rollout.generation.logprobs, rtol=0, atol=1e-5)
    _, metrics = to_ppo_batch(rollout, beta=1.0, gamma=1.0, gae_lambda=0.95)
    assert abs(metrics["kl"]) < 1e-5


# ------------------------------------------------------------------------------------- the batch
def naive_batch(rollout: Rollout, beta: float, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns by a loop over single tokens, in Python floats."""
    generation = rollout.generation
    advantages = torch.zeros(generation.mask.shape, dtype=torch.float64)
    for row, n in enumerate(generation.lengths.tolist()):
        carried = 0.0
        for t in reversed(range(n)):
            reward = -beta * float(generation.logprobs[row, t] - rollout.ref_logprobs[row, t])
            reward += float(rollout.scores[row]) if t == n - 1 else 0.0
            following = float(rollout.values[row, t + 1]) if t < n - 1 else 0.0
            carried = reward + gamma * following - float(rollout.values[row, t]) + gamma * lam * carried
            advantages[row, t] = carried
    return advantages, (advantages + rollout.values.double()) * generation.mask


def test_advantages_are_those_of_a_naive_loop() -> None:
    rollout, _, _ = rollout_of()
    batch, metrics = to_ppo_batch(rollout, beta=0.2, gamma=0.9, gae_lambda=0.8, normalize_advantages=False)
    advantages, returns = naive_batch(rollout, 0.2, 0.9, 0.8)
    torch.testing.assert_close(batch.advantages.double(), advantages, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.returns.double(), returns, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.logprobs, rollout.generation.logprobs)
    assert torch.equal(batch.values, rollout.values)
    assert isinstance(batch.inputs, TextActions)
    assert torch.equal(batch.inputs.ref_logprobs, rollout.ref_logprobs)
    kl = [float((rollout.generation.logprobs[b] - rollout.ref_logprobs[b]).sum()) for b in range(12)]
    assert metrics["kl"] == pytest.approx(sum(kl) / 12, rel=1e-5)  # a sum over the reply, not a mean (trap 30)
    assert metrics["score"] == pytest.approx(float(rollout.scores.mean()))
    assert metrics["term/length"] == metrics["score"]
    assert metrics["eos_rate"] == pytest.approx(float(rollout.generation.ended.float().mean()))
    assert metrics["length"] == pytest.approx(float(rollout.generation.mask.sum()) / 12)


def test_nan_behind_the_ends_reaches_nothing() -> None:
    rollout, _, _ = rollout_of()
    mask = rollout.generation.mask

    def poisoned(x: Tensor) -> Tensor:
        return torch.where(mask, x, math.nan)

    dirty = replace(
        rollout,
        generation=replace(rollout.generation, logprobs=poisoned(rollout.generation.logprobs)),
        ref_logprobs=poisoned(rollout.ref_logprobs),
        values=poisoned(rollout.values),
    )
    for whiten in (False, True):
        given = {"beta": 0.2, "gamma": 0.9, "gae_lambda": 0.8, "whiten_token_rewards": whiten}
        clean, numbers = to_ppo_batch(rollout, **given)  # type: ignore[arg-type]
        batch, dirty_numbers = to_ppo_batch(dirty, **given)  # type: ignore[arg-type]
        assert torch.equal(batch.advantages, clean.advantages)
        assert torch.equal(batch.returns[mask], clean.returns[mask])
        assert dirty_numbers == numbers


def test_advantages_are_whitened_over_valid_tokens() -> None:
    rollout, _, _ = rollout_of()
    plain, _ = to_ppo_batch(rollout, beta=0.2, gamma=1.0, gae_lambda=0.95, normalize_advantages=False)
    white, _ = to_ppo_batch(rollout, beta=0.2, gamma=1.0, gae_lambda=0.95)
    valid = plain.advantages[plain.mask].double()
    expected = (valid - valid.mean()) / valid.std(correction=0)
    torch.testing.assert_close(white.advantages[white.mask].double(), expected, rtol=1e-5, atol=1e-5)
    assert (white.advantages[~white.mask] == 0).all()
    assert torch.equal(white.returns, plain.returns)  # the value's targets are not whitened


def test_shaping_reaches_the_batch() -> None:
    rollout, _, _ = rollout_of()
    ended, mask = rollout.generation.ended, rollout.generation.mask
    batch, metrics = to_ppo_batch(
        rollout, beta=0.0, gamma=1.0, gae_lambda=1.0, scale=0.5, clip=2.0, missing_eos_penalty=-7.0,
        normalize_advantages=False,
    )  # fmt: skip
    shaped = torch.where(ended, (rollout.scores * 0.5).clamp(-2, 2), -7.0)
    torch.testing.assert_close(batch.returns, shaped[:, None] * mask, rtol=0, atol=1e-4)
    assert metrics["score"] == pytest.approx(float(rollout.scores.mean()))  # what is logged is the reward itself


def test_rows_of_a_batch_keep_their_prompts() -> None:
    rollout, _, _ = rollout_of()
    batch, _ = to_ppo_batch(rollout, beta=0.2, gamma=1.0, gae_lambda=0.95)
    rows = torch.tensor([7, 0, 3])
    some = batch[rows]
    assert isinstance(some.inputs, TextActions)
    assert some.inputs.prompts == tuple(rollout.generation.prompts[r] for r in (7, 0, 3))
    for name in ("mask", "logprobs", "values", "advantages", "returns"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[rows])
    assert torch.equal(some.inputs.responses, rollout.generation.responses[rows])
