"""From a rollout of text to PPO's batch: old log-probs, values and advantages, against loops over single tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accord.algorithms.ppo import policy_pass, prepare, token_batch
from accord.config.load import build
from accord.config.ppo import PPO
from accord.data.prompts import PromptData
from accord.data.tokenizer import Tokenizer, small_tokenizer
from accord.models.backbone import Backbone
from accord.models.language import LanguageActorCritic
from accord.models.open import open_backbone, small_backbone
from accord.models.reference import FrozenReference
from accord.rollout.collect import TextTask, collect
from accord.rollout.generate import Decoding
from accord.rollout.noise import reply_keys
from accord.rollout.score import FunctionReward
from accord.types import PolicyBatch, Rollout, TextActions

TOKENIZER = small_tokenizer()
TEXTS = ("what is the sea?", "hi", "what is the sky?", "what is the sea?")
PROMPTS = tuple(tuple(TOKENIZER.encode(f"<user>{t}<assistant>")) for t in TEXTS)
END = TOKENIZER.encode("e")[0]  # a letter is drawn often enough to end some replies
TEMPERATURE = 0.8


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
    nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr, arg-type]
    return policy


def rollout_of(policy: LanguageActorCritic, reference: int = 1, with_readout: bool = True) -> Rollout:
    prompts = PromptData(PROMPTS, TEXTS, TEXTS, None)  # type: ignore[arg-type]
    decoding = Decoding(9, END, TOKENIZER.pad_id, TEMPERATURE)
    task = TextTask(
        prompts,
        TOKENIZER,
        decoding,
        3,
        FunctionReward("length", length),
        FrozenReference(tiny(reference), TEMPERATURE),
        4,
    )
    readout = policy.values if with_readout and policy.values_come_with_sampling else None
    return collect(
        task, policy.policy, range(4), reply_keys(2, "the test", 0, range(4), task.samples_per_prompt), readout=readout
    )


def config_of(**changes: Any) -> PPO:
    training = {"gamma": 0.9, "gae_lambda": 0.8, "batch_size": 5, **changes.pop("training", {})}
    sampling = {"temperature": TEMPERATURE, **changes.pop("sampling", {})}
    values = {"model": {"policy": "language"}, "training": training, "sampling": sampling, **changes}
    return build(PPO, values, {}, "the test")


PLAIN = {"normalize_advantages": False}


def batch_of(rollout: Rollout, beta: float = 0.2, **changes: Any) -> PolicyBatch:
    """On the sampler's log-probs and on the values read during sampling."""
    assert rollout.readout is not None
    return token_batch(rollout, rollout.generation.logprobs, rollout.readout, beta, config_of(**changes))[0]


# ------------------------------------------------------------------------------------- old log-probs and values
@pytest.mark.parametrize("critic", ["shared", "shared_detached", "separate"])
def test_old_log_probs_and_values_are_the_policys(critic: str) -> None:
    policy = policy_of(critic)
    rollout = rollout_of(policy)
    assert (rollout.readout is None) is (critic == "separate")
    old, values, mismatch = policy_pass(rollout, policy, config_of())
    assert old is rollout.generation.logprobs
    assert mismatch == {}
    again, other, _ = policy_pass(rollout_of(policy, with_readout=False), policy, config_of())
    assert torch.equal(again, old)
    torch.testing.assert_close(values, other, rtol=0, atol=1e-4)
    assert (values[~rollout.generation.mask] == 0).all()
    assert values[rollout.generation.mask].std() > 0.1


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_recomputed_log_probs_agree_and_the_mismatch_is_logged(weights: str) -> None:
    """Where sampler and trainer may differ, the trainer's numbers are taken; here the two are the same model."""
    config = config_of(sampling={"weights": weights})
    policy = policy_of("shared")
    rollout = rollout_of(policy)
    old, _, mismatch = policy_pass(rollout, policy, config)
    sampled, mask = rollout.generation.logprobs, rollout.generation.mask
    assert old is not sampled
    torch.testing.assert_close(old, sampled, rtol=0, atol=1e-5)
    apart = (old - sampled)[mask].abs()
    assert mismatch["mismatch_max"] == pytest.approx(float(apart.max()), abs=1e-9)
    assert mismatch["mismatch_mean"] == pytest.approx(float(apart.mean()), abs=1e-9)
    assert 0 <= mismatch["mismatch_mean"] <= mismatch["mismatch_max"] < 1e-5
    shifted = replace(rollout, generation=replace(rollout.generation, logprobs=torch.where(mask, sampled + 0.5, 0.0)))
    new, _, mismatch = policy_pass(shifted, policy, config)
    assert torch.equal(new, old)  # whatever the sampler's log-probs were
    assert mismatch["mismatch_mean"] == pytest.approx(0.5, abs=1e-4)
    batch, stats = prepare(shifted, 0, policy, 0.1, config)
    assert torch.equal(batch.old_logprobs, old)
    assert stats.metrics["mismatch_mean"] == mismatch["mismatch_mean"]


def test_the_kl_to_the_policy_itself_is_zero_at_the_first_rollout() -> None:
    """The reference is opened from its own folder, not from the resumed policy."""
    policy = policy_of("shared")
    rollout = rollout_of(policy, reference=0)
    torch.testing.assert_close(rollout.ref_logprobs, rollout.generation.logprobs, rtol=0, atol=1e-5)
    _, stats = prepare(rollout, 0, policy, 1.0, config_of())
    assert abs(stats.kl) < 1e-5
    assert stats.metrics["kl"] == stats.kl


# ------------------------------------------------------------------------------------- advantages
def naive_batch(rollout: Rollout, beta: float, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns by a loop over single tokens, in Python floats."""
    generation, values = rollout.generation, rollout.readout
    assert values is not None
    advantages = torch.zeros(generation.mask.shape, dtype=torch.float64)
    for row, n in enumerate(generation.lengths.tolist()):
        carried = 0.0
        for t in reversed(range(n)):
            reward = -beta * float(generation.logprobs[row, t] - rollout.ref_logprobs[row, t])
            reward += float(rollout.scores[row]) if t == n - 1 else 0.0
            following = float(values[row, t + 1]) if t < n - 1 else 0.0
            carried = reward + gamma * following - float(values[row, t]) + gamma * lam * carried
            advantages[row, t] = carried
    return advantages, (advantages + values.double()) * generation.mask


def test_advantages_are_those_of_a_naive_loop() -> None:
    policy = policy_of("shared")
    rollout = rollout_of(policy)
    batch, stats = prepare(rollout, 0, policy, 0.2, config_of(training=PLAIN))
    advantages, returns = naive_batch(rollout, 0.2, 0.9, 0.8)
    assert batch.returns is not None
    assert batch.values is not None
    assert rollout.readout is not None
    torch.testing.assert_close(batch.advantages.double(), advantages, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.returns.double(), returns, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.old_logprobs, rollout.generation.logprobs)
    assert torch.equal(batch.values, rollout.readout)
    assert isinstance(batch.inputs, TextActions)
    assert torch.equal(batch.inputs.ref_logprobs, rollout.ref_logprobs)
    metrics = stats.metrics
    kl = [float((rollout.generation.logprobs[b] - rollout.ref_logprobs[b]).sum()) for b in range(12)]
    assert stats.kl == metrics["kl"] == pytest.approx(sum(kl) / 12, rel=1e-5)  # a sum over the reply, not a mean
    assert stats.replies == metrics["replies"] == 12
    assert metrics["score"] == pytest.approx(float(rollout.scores.mean()))
    assert metrics["term/length"] == metrics["score"]
    assert metrics["eos_rate"] == pytest.approx(float(rollout.generation.ended.float().mean()))
    assert metrics["length"] == pytest.approx(float(rollout.generation.mask.sum()) / 12)
    mask = batch.mask
    left = (batch.returns - batch.values)[mask].var(correction=0) / batch.returns[mask].var(correction=0)
    assert metrics["explained_variance"] == pytest.approx(1 - float(left), rel=1e-4)


def test_a_kl_in_the_loss_leaves_the_rewards_alone() -> None:
    rollout = rollout_of(policy_of("shared"))
    loss = {"kl": {"placement": "loss", "estimator": "k2"}}
    without, inside = batch_of(rollout, beta=0.0), batch_of(rollout, beta=5.0, **loss)
    assert torch.equal(inside.advantages, without.advantages)
    assert not torch.equal(batch_of(rollout, beta=5.0).advantages, without.advantages)


def test_nan_after_the_ends_reaches_nothing() -> None:
    policy = policy_of("shared")
    rollout = rollout_of(policy)
    mask = rollout.generation.mask

    def poisoned(x: Tensor | None) -> Tensor:
        assert x is not None
        return torch.where(mask, x, math.nan)

    dirty = replace(
        rollout,
        generation=replace(rollout.generation, logprobs=poisoned(rollout.generation.logprobs)),
        ref_logprobs=poisoned(rollout.ref_logprobs),
        readout=poisoned(rollout.readout),
    )
    for whiten in (False, True):
        config = config_of(reward={"source": "x:y", "whiten": whiten})
        clean, stats = prepare(rollout, 0, policy, 0.2, config)
        batch, dirty_stats = prepare(dirty, 0, policy, 0.2, config)
        assert batch.returns is not None
        assert clean.returns is not None
        assert torch.equal(batch.advantages, clean.advantages)
        assert torch.equal(batch.returns[mask], clean.returns[mask])
        assert dirty_stats == stats


def test_advantages_are_whitened_over_valid_tokens() -> None:
    rollout = rollout_of(policy_of("shared"))
    plain, white = batch_of(rollout, training=PLAIN), batch_of(rollout)
    valid = plain.advantages[plain.mask].double()
    expected = (valid - valid.mean()) / valid.std(correction=0)
    torch.testing.assert_close(white.advantages[white.mask].double(), expected, rtol=1e-5, atol=1e-5)
    assert (white.advantages[~white.mask] == 0).all()
    assert white.returns is not None
    assert plain.returns is not None
    assert torch.equal(white.returns, plain.returns)  # the value's targets are not whitened


def test_shaping_reaches_the_batch() -> None:
    policy = policy_of("shared")
    rollout = rollout_of(policy)
    ended, mask = rollout.generation.ended, rollout.generation.mask
    reward = {"source": "x:y", "scale": 0.5, "clip": 2.0, "missing_eos_penalty": -7.0}
    training = {**PLAIN, "gamma": 1.0, "gae_lambda": 1.0}
    batch, stats = prepare(rollout, 0, policy, 0.0, config_of(reward=reward, training=training))
    shaped = torch.where(ended, (rollout.scores * 0.5).clamp(-2, 2), -7.0)
    assert batch.returns is not None
    torch.testing.assert_close(batch.returns, shaped[:, None] * mask, rtol=0, atol=1e-4)
    assert stats.metrics["score"] == pytest.approx(float(rollout.scores.mean()))  # what is logged is the reward itself


def test_whitened_token_rewards_are_divided_by_their_deviation() -> None:
    rollout = rollout_of(policy_of("shared"))
    gamma = {**PLAIN, "gamma": 0.0}  # a return is the token's own reward
    plain = batch_of(rollout, training=gamma)
    white = batch_of(rollout, training=gamma, reward={"source": "x:y", "whiten": True})
    assert plain.returns is not None
    assert white.returns is not None
    rewards = plain.returns[plain.mask]
    expected = rewards / rewards.std(correction=0)
    torch.testing.assert_close(white.returns[white.mask], expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_keep_their_prompts() -> None:
    rollout = rollout_of(policy_of("shared"))
    batch = batch_of(rollout)
    rows = torch.tensor([7, 0, 3])
    some = batch[rows]
    assert isinstance(some.inputs, TextActions)
    assert some.inputs.prompts == tuple(rollout.generation.prompts[r] for r in (7, 0, 3))
    for name, tensor in batch.tensors().items():
        assert torch.equal(some.tensors()[name], tensor[rows])
    assert torch.equal(some.inputs.responses, rollout.generation.responses[rows])


# ------------------------------------------------------------------------------------- precision of sampler and trainer
def with_large_weights(folder: str, by: float, target: Path, tokenizer: Tokenizer) -> str:
    """A copy with weights so large that rounding to bfloat16 matters."""
    backbone = open_backbone(folder)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if weight.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                weight.mul_(by)
    target.mkdir()
    backbone.save(str(target))
    tokenizer.save(target)
    return str(target)


def precision_config(model: str, prompts: str, rewards: str, precision: str) -> dict[str, Any]:
    return {
        "model": {"policy": "language", "base_model": model, "max_length": 64},
        "training": {"replies": 8, "batch_size": 8, "num_epochs": 1, "iterations": 2, "learning_rate": 1e-3},
        "sampling": {"max_new_tokens": 12, "temperature": 0.7},
        "prompts": prompts,
        "reward": {"source": f"{rewards}:brevity", "scale": 0.1},
        "precision": precision,
    }


@pytest.mark.parametrize(("family", "by"), [("mamba", 3), ("transformer", 8)])
def test_in_bfloat16_rollouts_start_at_ratio_one_and_log_the_mismatch(
    stage: Any, world: Any, rewards: str, lines: Any, tokenizer: Tokenizer, tmp_path: Path, family: str, by: float
) -> None:
    model = with_large_weights(getattr(world, family), by, tmp_path / "large", tokenizer)
    stage("ppo", precision_config(model, world.prompts, rewards, "bfloat16"))
    rollouts = [row for row in lines("ppo") if "rollout/mismatch_max" in row]
    assert len(rollouts) == 2
    for row in rollouts:
        assert 1e-4 < row["rollout/mismatch_mean"] < row["rollout/mismatch_max"]
    steps = [row for row in lines("ppo") if "ratio" in row]  # one a rollout
    assert [row["ratio"] for row in steps] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert max(row["approx_kl"] for row in steps) < 1e-9


def test_in_float32_the_log_probs_of_sampling_are_used(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    stage("ppo", precision_config(world.transformer, world.prompts, rewards, "float32"))
    assert not any("rollout/mismatch_max" in row for row in lines("ppo"))
