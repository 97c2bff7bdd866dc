"""The quick path of plain PPO computes what the plain path does: loss, metrics, gradient, and every step of Adam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accord.algorithms.ppo_core import ActionScores, PPOObjective
from accord.config.on_policy import KL, PPOOptimizer
from accord.errors import UserError
from accord.kernels.numpy_actor_critic import HandGradient, has_hand_gradient
from accord.models.heads import ActorCritic, AnyActorCritic, GaussianActorCritic
from accord.training.numpy_updater import HandUpdater
from accord.training.updater import Updater
from accord.types import PPOBatch, VectorActions

KINDS = ["discrete", "normal"]


def model_of(kind: str, seed: int = 0) -> AnyActorCritic:
    torch.manual_seed(seed)
    model: AnyActorCritic = ActorCritic(5, 3, 16) if kind == "discrete" else GaussianActorCritic(5, 3, 16, -0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # heads that say something
    return model


def batch_of(model: AnyActorCritic, rows: int = 40, seed: int = 1, far: float = 0.4) -> PPOBatch:
    """Steps taken by a policy ``far`` away, so that ratios and values stand on both sides of their clips."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(rows, model.obs_dim, generator=generator)
    with torch.no_grad():
        actions, logprobs, values = model.get_action_and_value(observations, generator=generator)
    shift = lambda x: (x + far * torch.randn(rows, generator=generator))[:, None]  # noqa: E731
    mask = torch.rand(rows, 1, generator=generator) < 0.8
    advantages, returns = torch.randn(rows, 1, generator=generator), shift(values)
    return PPOBatch(VectorActions(observations, actions), mask, shift(logprobs), shift(values), advantages, returns)


def objective_of(model: AnyActorCritic, weight: float = 1.0, **settings: Any) -> PPOObjective:
    def score(inputs: VectorActions) -> ActionScores:
        logprobs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(logprobs[:, None], entropy[:, None], values[:, None])

    options = PPOOptimizer(**{"ent_coef": 0.02, "vf_coef": 0.7, **settings})
    return PPOObjective(score, options, KL(), 0.0, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("clip_vf", "weight"), [(0.0, 1.0), (0.2, 1.0), (0.2, 0.0)])
def test_loss_metrics_and_gradient_are_autograd_s(kind: str, clip_vf: float, weight: float) -> None:
    plain, quick = model_of(kind), model_of(kind)
    batch = batch_of(plain)
    objective = objective_of(plain, weight, clip_range_vf=clip_vf, clip_range=0.15)
    output = objective(batch)
    output.loss.total.backward()  # type: ignore[no-untyped-call]
    updater = HandUpdater(HandGradient(quick), PPOOptimizer(max_grad_norm=1e9, learning_rate=0.0), 1)
    hand = updater.hand
    metrics = updater.step([batch], objective_of(quick, weight, clip_range_vf=clip_vf, clip_range=0.15))
    for name, mean in {"loss": output.loss, **output.metrics}.items():
        assert metrics[name] == pytest.approx(mean.value(), rel=2e-5, abs=2e-6), name
    assert 0.05 < metrics["clip_fraction"] < 0.95
    assert (0.05 < metrics["value_clip_fraction"] < 0.95) == bool(clip_vf)
    rows = batch.mask[:, 0]
    from accord.training.numpy_updater import _taken, _weights

    hand.differentiate(_taken(batch), _weights(objective))
    expected = torch.cat([p.grad.reshape(-1) for p in _flat_order(plain)])
    torch.testing.assert_close(torch.from_numpy(hand.gradient), expected, rtol=2e-4, atol=2e-5 * int(rows.sum()))
    assert float(expected.abs().max()) > 0.5


def _flat_order(model: AnyActorCritic) -> list[nn.Parameter]:
    from accord.kernels.numpy_actor_critic import _in_order

    return _in_order(model.policy, model.critic, getattr(model, "log_std", None))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("micro", "compiled"), [(0, False), (7, False), (0, True)])
def test_forty_steps_end_at_the_same_weights(kind: str, micro: int, compiled: bool) -> None:
    """Clipped gradients, a falling rate, masked rows, other batches each time: parameters agree to 2e-5."""
    plain, quick = model_of(kind), model_of(kind)
    settings = PPOOptimizer(learning_rate=3e-3, schedule="linear", warmup_steps=4, max_grad_norm=0.5, clip_range_vf=0.2)
    slow, fast = (
        Updater([(plain.parameters(), 3e-3)], settings, 40),
        HandUpdater(HandGradient(quick, compiled), settings, 40),
    )
    clipped = 0
    for number in range(40):
        batch = batch_of(plain, seed=number, far=0.1)
        parts = [batch] if not micro else [batch[part] for part in torch.split(torch.arange(40), micro)]
        first = slow.step(parts, objective_of(plain, clip_range_vf=0.2))
        second = fast.step(parts, objective_of(quick, clip_range_vf=0.2))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (number, name)
        clipped += first["grad_norm"] > 0.5
    assert clipped > 5
    for (name, mine), theirs in zip(quick.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_draws_is_the_policy_s(kind: str) -> None:
    model = model_of(kind)
    hand = HandGradient(model)
    observations = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)).repeat(4000, 1)
    drawn = hand.draw(observations.numpy(), hand.chances((12000,), torch.Generator().manual_seed(5)))
    actions = torch.from_numpy(drawn)
    logprobs, values = (torch.from_numpy(x) for x in hand.assess(observations.numpy(), drawn))
    with torch.no_grad():
        expected, expected_values, _ = model.evaluate(observations, actions)
        output, _ = model(observations)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(hand.values(observations.numpy())), expected_values, rtol=1e-5, atol=1e-5
    )
    for row in range(3):
        mine = actions[row::3]
        if kind == "discrete":
            shares = torch.bincount(mine, minlength=3) / len(mine)
            torch.testing.assert_close(shares, output[row].softmax(-1), rtol=0, atol=0.035)
        else:
            torch.testing.assert_close(mine.mean(0), output[row], rtol=0, atol=0.06)
            torch.testing.assert_close(mine.std(0), model.log_std.detach().exp(), rtol=0.05, atol=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    settings = PPOOptimizer(learning_rate=1e-3, schedule="linear")
    first, second = model_of(kind), model_of(kind, seed=9)
    whole = HandUpdater(HandGradient(first), settings, 10)
    for number in range(10):
        if number == 4:
            torch.save({"model": first.state_dict(), "updater": whole.state_dict()}, tmp_path / "state.pt")
        whole.step([batch_of(first, seed=number)], objective_of(first))
    again = HandUpdater(HandGradient(second), settings, 10)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    again.load_state_dict(state["updater"])
    replay = model_of(kind)
    mirror = HandUpdater(HandGradient(replay), settings, 10)
    for number in range(10):  # the batches are drawn from the policy, so a third one shows them again
        batch = batch_of(replay, seed=number)
        mirror.step([batch], objective_of(replay))
        if number >= 4:
            again.step([batch], objective_of(second))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_finite_is_refused_before_any_weight_moves() -> None:
    model = model_of("discrete")
    updater = HandUpdater(HandGradient(model), PPOOptimizer(), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batch_of(model)
    batch.advantages[batch.mask] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        updater.step([batch], objective_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masked_rows_may_hold_nan() -> None:
    model = model_of("normal")
    updater = HandUpdater(HandGradient(model), PPOOptimizer(), 1)
    batch = batch_of(model)
    for x in (batch.logprobs, batch.values, batch.advantages, batch.returns):
        x[~batch.mask] = float("nan")
    batch.inputs.observations[~batch.mask[:, 0]] = float("nan")  # type: ignore[union-attr]
    metrics = updater.step([batch], objective_of(model))
    assert all(value == value for value in metrics.values())


def test_which_models_have_it() -> None:
    assert has_hand_gradient(model_of("discrete"))
    assert has_hand_gradient(model_of("normal"))
    assert not has_hand_gradient(ActorCritic(5, 3, 16, shared=True))
    assert not has_hand_gradient(model_of("discrete").double())
    assert not has_hand_gradient(nn.Linear(3, 3))


def test_the_compiled_tanh() -> None:
    from accord.kernels.tanh_numba import tanh_of_sum, through_tanh

    x = np.linspace(-14, 14, 40_001, dtype=np.float32).reshape(1, -1)
    bias = np.full(40_001, 0.25, dtype=np.float32)
    y = x.copy()
    tanh_of_sum(y, bias)
    assert np.abs(y - np.tanh(x.astype(np.float64) + 0.25)).max() < 3e-7
    gradient, activation = np.random.default_rng(0).normal(size=(2, 30, 7)).astype(np.float32)
    mine, total = gradient.copy(), np.ones(7, dtype=np.float32)
    through_tanh(mine, activation, total)
    np.testing.assert_allclose(mine, gradient * (1 - activation**2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, (gradient * (1 - activation**2)).sum(0), rtol=1e-5, atol=1e-5)
