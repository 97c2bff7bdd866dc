"""The NumPy updater computes what autograd does: loss, metrics, gradient, and every step of Adam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from accord.algorithms.ppo import ppo_loss
from accord.config.on_policy import PPOOptimizer
from accord.errors import UserError
from accord.kernels.numpy_actor_critic import LossCoefficients, NumpyActorCritic
from accord.models.heads import (
    ActorCritic,
    AnyActorCritic,
    GaussianActorCritic,
    numpy_networks,
    parameters_side_by_side,
)
from accord.training.numpy_updater import NumpyUpdater, coefficients_of, valid_steps
from accord.training.policy_loss import ActionScores, ClippedSurrogate, EntropyBonus, PolicyLoss, ReferenceKL, ValueLoss
from accord.training.updater import Updater
from accord.types import PolicyBatch, TextActions, VectorActions

KINDS = ["discrete", "normal"]


def model_of(kind: str, seed: int = 0) -> AnyActorCritic:
    torch.manual_seed(seed)
    model: AnyActorCritic = ActorCritic(5, 3, 16) if kind == "discrete" else GaussianActorCritic(5, 3, 16, -0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)  # heads that say something
    return model


def batch_of(model: AnyActorCritic, rows: int = 40, seed: int = 1, far: float = 0.4) -> PolicyBatch:
    """Steps taken by a policy ``far`` away, so that ratios and values are on both sides of their clips."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(rows, model.obs_dim, generator=generator)
    with torch.no_grad():
        actions, logprobs, values = model.get_action_and_value(observations, generator=generator)
    shift = lambda x: (x + far * torch.randn(rows, generator=generator))[:, None]  # noqa: E731
    mask = torch.rand(rows, 1, generator=generator) < 0.8
    advantages, returns = torch.randn(rows, 1, generator=generator), shift(values)
    old_logprobs, old_values = shift(logprobs), shift(values)
    return PolicyBatch(VectorActions(observations, actions), mask, old_logprobs, advantages, old_values, returns)


def networks_of(model: AnyActorCritic, compiled: bool = False) -> NumpyActorCritic:
    networks = numpy_networks(model, compiled)
    assert networks is not None
    return networks


def loss_of(model: AnyActorCritic, weight: float = 1.0, **settings: Any) -> PolicyLoss:
    def score(inputs: VectorActions) -> ActionScores:
        logprobs, values, entropy = model.evaluate(inputs.observations, inputs.actions)
        return ActionScores(logprobs[:, None], entropy[:, None], values[:, None])

    training = PPOOptimizer(**{"ent_coef": 0.02, "vf_coef": 0.7, **settings})
    return ppo_loss(score, training, training.clip_range, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("clip_vf", "weight"), [(0.0, 1.0), (0.2, 1.0), (0.2, 0.0)])
def test_loss_metrics_and_gradient_are_autograds(kind: str, clip_vf: float, weight: float) -> None:
    plain, quick = model_of(kind), model_of(kind)
    batch = batch_of(plain)
    loss = loss_of(plain, weight, clip_range_vf=clip_vf, clip_range=0.15)
    output = loss(batch)
    output.loss.total.backward()  # type: ignore[no-untyped-call]
    networks = networks_of(quick)
    updater = NumpyUpdater(networks, PPOOptimizer(max_grad_norm=1e9, learning_rate=0.0), 1)
    metrics = updater.step([batch], loss_of(quick, weight, clip_range_vf=clip_vf, clip_range=0.15))
    for name, mean in {"loss": output.loss, **output.metrics}.items():
        assert metrics[name] == pytest.approx(mean.value(), rel=2e-5, abs=2e-6), name
    assert 0.05 < metrics["clip_fraction"] < 0.95
    assert (0.05 < metrics["value_clip_fraction"] < 0.95) == bool(clip_vf)
    rows = batch.mask[:, 0]
    networks.differentiate(valid_steps(batch), coefficients_of(loss))
    gradients = [p.grad for p in parameters_side_by_side(plain)]
    expected = torch.cat([g.reshape(-1) for g in gradients if g is not None])
    torch.testing.assert_close(torch.from_numpy(networks.gradient), expected, rtol=2e-4, atol=2e-5 * int(rows.sum()))
    assert float(expected.abs().max()) > 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("micro", "compiled"), [(0, False), (7, False), (0, True)])
def test_forty_steps_end_at_the_same_weights(kind: str, micro: int, compiled: bool) -> None:
    """Clipped gradients, a falling rate, masked rows, other batches each time: parameters agree to 2e-5."""
    plain, quick = model_of(kind), model_of(kind)
    settings = PPOOptimizer(learning_rate=3e-3, schedule="linear", warmup_steps=4, max_grad_norm=0.5, clip_range_vf=0.2)
    slow, fast = (
        Updater([(plain.parameters(), 3e-3)], settings, 50),
        NumpyUpdater(networks_of(quick, compiled), settings, 50),
    )
    clipped = 0
    for number in range(40):
        place = number if number < 20 else number + 10  # as after a rollout that stopped early
        batch = batch_of(plain, seed=number, far=0.1)
        parts = [batch] if not micro else [batch[part] for part in torch.split(torch.arange(40), micro)]
        first = slow.step(parts, loss_of(plain, clip_range_vf=0.2), place)
        second = fast.step(parts, loss_of(quick, clip_range_vf=0.2), place)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (number, name)
        clipped += first["grad_norm"] > 0.5
    assert clipped > 5
    for (name, mine), theirs in zip(quick.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_is_the_policys(kind: str) -> None:
    model = model_of(kind)
    networks = networks_of(model)
    observations = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)).repeat(4000, 1)
    noise = networks.sampling_noise((12000,), torch.Generator().manual_seed(5))
    drawn = networks.sample(observations.numpy(), noise)
    actions = torch.from_numpy(drawn)
    logprobs, values = (torch.from_numpy(x) for x in networks.score(observations.numpy(), drawn))
    with torch.no_grad():
        expected, expected_values, _ = model.evaluate(observations, actions)
        output, _ = model(observations)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(networks.values(observations.numpy())), expected_values, rtol=1e-5, atol=1e-5
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
def test_a_saved_state_resumes_bit_exactly(kind: str, tmp_path: Path) -> None:
    settings = PPOOptimizer(learning_rate=1e-3, schedule="linear")
    first, second = model_of(kind), model_of(kind, seed=9)
    whole = NumpyUpdater(networks_of(first), settings, 10)
    for number in range(10):
        if number == 4:
            torch.save({"model": first.state_dict(), "updater": whole.state_dict()}, tmp_path / "state.pt")
        whole.step([batch_of(first, seed=number)], loss_of(first))
    again = NumpyUpdater(networks_of(second), settings, 10)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    again.load_state_dict(state["updater"])
    replay = model_of(kind)
    mirror = NumpyUpdater(networks_of(replay), settings, 10)
    for number in range(10):  # the batches are drawn from the policy, so a third one shows them again
        batch = batch_of(replay, seed=number)
        mirror.step([batch], loss_of(replay))
        if number >= 4:
            again.step([batch], loss_of(second))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_finite_is_refused_before_any_weight_moves() -> None:
    model = model_of("discrete")
    updater = NumpyUpdater(networks_of(model), PPOOptimizer(), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batch_of(model)
    batch.advantages[batch.mask] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        updater.step([batch], loss_of(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masked_rows_may_hold_nan() -> None:
    model = model_of("normal")
    updater = NumpyUpdater(networks_of(model), PPOOptimizer(), 1)
    batch = batch_of(model)
    for x in (batch.old_logprobs, batch.values, batch.advantages, batch.returns):
        x[~batch.mask] = float("nan")
    batch.inputs.observations[~batch.mask[:, 0]] = float("nan")  # type: ignore[union-attr]
    metrics = updater.step([batch], loss_of(model))
    assert all(value == value for value in metrics.values())


# ------------------------------------------------------------------------------------- which models
@pytest.mark.parametrize("kind", KINDS)
def test_networks_and_model_share_their_memory(kind: str) -> None:
    model, other = model_of(kind), model_of(kind, seed=9)
    networks, batch = networks_of(model), batch_of(model)
    observations = torch.randn(7, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    NumpyUpdater(networks, PPOOptimizer(learning_rate=0.01), 1).step([batch], loss_of(model))
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for change in (lambda: None, lambda: model.load_state_dict(other.state_dict())):
        change()
        with torch.no_grad():
            values = model.value(observations)
        torch.testing.assert_close(torch.from_numpy(networks.values(observations.numpy())), values)
    assert np.array_equal(networks.flat, torch.cat([p.detach().reshape(-1) for p in parameters_side_by_side(other)]))


def test_taking_networks_changes_no_weight() -> None:
    model = model_of("normal")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    networks_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Scaled(ActorCritic):
    """A user's own policy class, with the same parameters."""

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().forward(2 * obs)


def hooked(register: str) -> ActorCritic:
    model = ActorCritic(5, 3, 16)
    getattr(model.policy.trunk[0], register)(lambda *_: None)
    return model


def replaced() -> ActorCritic:
    model = ActorCritic(5, 3, 16)
    model.policy = type("Own", (type(model.policy),), {})(5, 3, 16)
    return model


UNFIT = {
    "a shared trunk": lambda: ActorCritic(5, 3, 16, shared=True),
    "float64": lambda: model_of("discrete").double(),
    "frozen parameters": lambda: model_of("discrete").requires_grad_(False),
    "another device": lambda: model_of("normal").to("meta"),
    "a subclass": lambda: Scaled(5, 3, 16),
    "a policy network of one's own": replaced,
    "a forward hook": lambda: hooked("register_forward_hook"),
    "a hook before forward": lambda: hooked("register_forward_pre_hook"),
    "a backward hook": lambda: hooked("register_full_backward_hook"),
    "a hook before backward": lambda: hooked("register_full_backward_pre_hook"),
    "another kind of module": lambda: nn.Linear(3, 3),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_model_changed_since_it_was_built_has_no_numpy_networks(what: str) -> None:
    model = UNFIT[what]()
    places = [p.data_ptr() for p in model.parameters()] if what != "another device" else []
    assert numpy_networks(model) is None
    assert what == "another device" or [p.data_ptr() for p in model.parameters()] == places


# ------------------------------------------------------------------------------------- which losses
TERMS = [(1.0, ClippedSurrogate(0.2)), (0.5, ValueLoss(0.3)), (0.02, EntropyBonus())]


def unscored(inputs: Any) -> ActionScores:
    raise NotImplementedError


def test_coefficients_are_read_by_kind_in_any_order() -> None:
    expected = LossCoefficients(policy=1.0, clip_range=0.2, value=0.5, clip_range_vf=0.3, entropy=0.02)
    for terms in (TERMS, TERMS[::-1]):
        assert coefficients_of(PolicyLoss(unscored, terms)) == expected
    logged = PolicyLoss(unscored, [*TERMS[:2], (0.02, EntropyBonus(metric_only=True))])
    assert coefficients_of(logged).entropy == 0.0


@pytest.mark.parametrize(
    "terms",
    [
        [*TERMS, (0.1, ReferenceKL("k2"))],
        [*TERMS, (0.1, lambda scores, batch: None)],
        [*TERMS, (0.3, EntropyBonus())],
        [TERMS[0], TERMS[0], TERMS[1]],
        TERMS[:2],
        TERMS[1:],
        [],
    ],
    ids=["unknown", "a function", "doubled", "doubled in another's place", "no entropy", "no policy", "nothing"],
)
def test_another_list_of_terms_is_refused_before_any_weight_moves(terms: list[Any]) -> None:
    model = model_of("discrete")
    updater = NumpyUpdater(networks_of(model), PPOOptimizer(), 1)
    before = updater.networks.flat.copy()
    with pytest.raises(TypeError, match=r"once each, not .*; use Updater"):
        updater.step([batch_of(model)], PolicyLoss(unscored, terms))
    assert np.array_equal(updater.networks.flat, before)
    assert updater.steps == 0


def test_weight_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="computes no weight decay; use Updater"):
        NumpyUpdater(networks_of(model_of("discrete")), PPOOptimizer(weight_decay=0.01), 1)


def test_a_batch_of_text_or_without_a_critic_is_refused() -> None:
    batch = batch_of(model_of("discrete"))
    inputs = TextActions(((1,),) * 40, torch.ones(40, 1, dtype=torch.int64), batch.mask, batch.old_logprobs)
    text = PolicyBatch(inputs, **batch.tensors())
    bare = PolicyBatch(batch.inputs, batch.mask, batch.old_logprobs, batch.advantages)
    for some in (text, bare):
        with pytest.raises(TypeError, match="observations and actions, with a critic's values and returns"):
            valid_steps(some)
