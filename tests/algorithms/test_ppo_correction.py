"""PPO's batch from replies that older weights sampled: recomputed log-probs, weights against the behavior policy's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from accord.algorithms.ppo import prepare
from accord.functional.advantages import token_gae
from accord.functional.corrections import decoupled_weights, truncated_sequence_weights, truncated_token_weights
from accord.functional.masked import whiten
from accord.functional.vtrace import token_vtrace, token_vtrace_parts
from accord.models.language import LanguageActorCritic
from accord.types import PolicyBatch, Rollout
from tests.algorithms.test_ppo_prepare import PLAIN, config_of, policy_of, rollout_of

KINDS = ("none", "token_tis", "sequence_tis", "vtrace", "decoupled")
WEIGHTS = {
    "token_tis": truncated_token_weights,
    "sequence_tis": truncated_sequence_weights,
    "decoupled": decoupled_weights,
}


@pytest.fixture(scope="module")
def policy() -> LanguageActorCritic:
    return policy_of("shared")


@pytest.fixture(scope="module")
def fresh(policy: LanguageActorCritic) -> Rollout:
    return rollout_of(policy)


@pytest.fixture(scope="module")
def stale(fresh: Rollout) -> Rollout:
    """The replies as if version 0 had sampled them, which gave them other probabilities."""
    noise = torch.randn(fresh.generation.mask.shape, generator=torch.Generator().manual_seed(3))
    behavior = torch.where(fresh.generation.mask, fresh.generation.logprobs + 0.5 * noise, 0.0)
    assert fresh.readout is not None
    return replace(fresh, generation=replace(fresh.generation, logprobs=behavior), readout=fresh.readout + 3)


def corrected(kind: str, **more: float) -> dict[str, Any]:
    return {"correction": {"kind": kind, **more}}


def same(a: PolicyBatch, b: PolicyBatch) -> bool:
    return all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())


@pytest.mark.parametrize("kind", ["token_tis", "sequence_tis", "decoupled"])
def test_on_policy_an_importance_weight_changes_nothing_bit_for_bit(
    policy: LanguageActorCritic, fresh: Rollout, kind: str
) -> None:
    plain, _ = prepare(fresh, 0, policy, 0.2, config_of())
    batch, stats = prepare(fresh, 0, policy, 0.2, config_of(**corrected(kind)))
    assert same(batch, plain)
    assert stats.metrics["ess"] == stats.metrics["ess_replies"] == stats.metrics["age/0"] == 1


def test_on_policy_vtrace_is_gae_to_rounding(policy: LanguageActorCritic, fresh: Rollout) -> None:
    plain, _ = prepare(fresh, 0, policy, 0.2, config_of())
    batch, _ = prepare(fresh, 0, policy, 0.2, config_of(**corrected("vtrace")))
    for name, x in plain.tensors().items():
        torch.testing.assert_close(batch.tensors()[name].float(), x.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_log_probs_and_values_of_stale_replies_are_recomputed(
    policy: LanguageActorCritic, fresh: Rollout, stale: Rollout, kind: str
) -> None:
    """The clipped surrogate's ratio is 1 at the first minibatch, whatever sampled; the mismatch is not the staleness."""
    batch, stats = prepare(stale, 2, policy, 0.2, config_of(**corrected(kind)))
    mask = batch.mask
    torch.testing.assert_close(batch.old_logprobs[mask], fresh.generation.logprobs[mask], rtol=0, atol=1e-5)
    assert batch.values is not None
    assert fresh.readout is not None
    torch.testing.assert_close(batch.values[mask], fresh.readout[mask], rtol=0, atol=1e-4)
    metrics = stats.metrics
    assert metrics["age_mean"] == metrics["age_max"] == 2
    assert metrics["age/2-3"] == 1
    assert "mismatch_mean" not in metrics
    apart = (batch.old_logprobs - stale.generation.logprobs)[mask].abs()
    assert metrics["staleness_mean"] == pytest.approx(float(apart.mean()), rel=1e-6)
    assert 0.1 < metrics["ess_replies"] < metrics["ess"] < 1


@pytest.mark.parametrize("kind", ["token_tis", "sequence_tis", "decoupled"])
@pytest.mark.parametrize("cap", [0.0, 1.2])
def test_whitened_advantages_are_weighted_against_the_behavior_policy(
    policy: LanguageActorCritic, stale: Rollout, kind: str, cap: float
) -> None:
    plain, _ = prepare(stale, 2, policy, 0.2, config_of(**corrected("none")))
    batch, _ = prepare(stale, 2, policy, 0.2, config_of(**corrected(kind, cap=cap)))
    weights = WEIGHTS[kind](batch.old_logprobs, stale.generation.logprobs, batch.mask, cap or torch.inf)
    assert torch.equal(batch.advantages, plain.advantages * weights)
    assert (weights[batch.mask] != 1).float().mean() > 0.5
    assert batch.returns is not None
    assert torch.equal(batch.returns, plain.tensors()["returns"])  # importance weights leave the critic's targets
    if cap:
        assert float(weights.max()) <= 1.2 + 1e-6


@pytest.mark.parametrize("normalized", [False, True])
def test_vtrace_sets_advantages_and_targets_and_whitens_before_the_ratio(
    policy: LanguageActorCritic, stale: Rollout, normalized: bool
) -> None:
    training = {} if normalized else PLAIN
    batch, _ = prepare(
        stale, 2, policy, 0.0, config_of(**corrected("vtrace", rho_bar=1.5, c_bar=0.7), training=training)
    )
    mask, behavior = batch.mask, stale.generation.logprobs
    rewards = torch.zeros_like(behavior)
    rewards[torch.arange(len(rewards)), mask.sum(1) - 1] = stale.scores
    values = batch.values
    assert values is not None
    rest = (batch.old_logprobs, behavior, rewards, values, mask, 0.9, 0.8, 1.5, 0.7)
    unweighted, rho, targets = token_vtrace_parts(*rest)
    expected = rho * whiten(unweighted, mask) if normalized else token_vtrace(*rest)[0]
    torch.testing.assert_close(batch.advantages, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.returns, targets, rtol=1e-5, atol=1e-5)
    _, gae_returns = token_gae(rewards, values, mask, 0.9, 0.8)
    assert (targets - gae_returns)[mask].abs().mean() > 0.01


def test_without_stale_replies_and_corrections_nothing_more_is_logged(
    policy: LanguageActorCritic, fresh: Rollout
) -> None:
    _, stats = prepare(fresh, 0, policy, 0.2, config_of())
    assert not {"ess", "age_mean", "staleness_mean"} & set(stats.metrics)


def test_a_run_with_a_lag_trains_on_replies_of_that_age(stage: Any, world: Any, rewards: str, lines: Any) -> None:
    values = {
        "model": {"base_model": world.mamba},
        "reward": {"source": f"{rewards}:share_of_a"},
        "prompts": world.prompts,
        "training": {"iterations": 4, "replies": 8, "batch_size": 8, "num_epochs": 2, "learning_rate": 0.01},
        "sampling": {"max_new_tokens": 6},
        "rollout": {"lag": 2},
    }
    stage("ppo", values)
    rollouts = [row for row in lines("ppo") if "rollout/age_max" in row]
    assert [row["rollout/age_max"] for row in rollouts] == [0, 1, 2, 2]
    assert rollouts[0]["rollout/ess"] == 1  # token_tis is the default, and does nothing to the first one
    assert all(row["rollout/ess"] < 1 for row in rollouts[1:])
    assert all(row["ratio"] == pytest.approx(1, abs=1e-5) for row in lines("ppo") if row["step"] % 2 and "ratio" in row)
