"""The specified actor-critic: shapes, orders, distributions, initial weights, what is shared and what is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from accord.models.heads import (
    ActorCritic,
    GaussianActorCritic,
    MultiDiscreteActorCritic,
    PolicyNetwork,
    ValueNetwork,
    numpy_networks,
)


def model(shared: bool = False, action_dim: int = 5) -> ActorCritic:
    torch.manual_seed(0)
    net = ActorCritic(obs_dim=8, action_dim=action_dim, hidden_dim=16, shared=shared)
    with torch.no_grad():
        net.policy.head.weight.mul_(200)  # away from the uniform policy of the start
    return net


def test_the_documented_calls_have_the_documented_shapes() -> None:
    net = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64)
    obs = torch.randn(1, 128)
    action, log_prob, value = net.get_action_and_value(obs)
    assert action.shape == log_prob.shape == value.shape == (1,)
    assert action.dtype is torch.int64
    log_probs, values, entropy = net.evaluate(obs.repeat(32, 1), torch.randint(0, 50, (32,)))
    assert log_probs.shape == values.shape == entropy.shape == (32,)
    default = ActorCritic(obs_dim=128, action_dim=50)
    default.load_state_dict(net.state_dict())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4)])
def test_any_leading_dimensions_are_taken(shared: bool, shape: tuple[int, ...]) -> None:
    net = model(shared)
    obs = torch.randn(*shape, 8)
    for out in (*net.get_action_and_value(obs), net.value(obs)):
        assert out.shape == shape
    assert net.policy(obs).shape == (*shape, 5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_acting_and_evaluating_give_the_same_log_probs(shared: bool, deterministic: bool) -> None:
    net, obs = model(shared), torch.randn(50, 8)
    action, log_prob, value = net.get_action_and_value(obs, deterministic)
    log_probs, values, entropy = net.evaluate(obs, action)
    assert torch.equal(log_prob, log_probs)
    assert torch.equal(value, values)
    assert torch.equal(value, net.value(obs))
    oracle = torch.distributions.Categorical(logits=net.policy(obs))
    torch.testing.assert_close(log_probs, oracle.log_prob(action))
    torch.testing.assert_close(entropy, oracle.entropy())
    if deterministic:
        assert torch.equal(action, oracle.probs.argmax(-1))


def test_draws_follow_the_policy() -> None:
    net, obs = model(), torch.randn(1, 8)
    probs = torch.softmax(net.policy(obs)[0], -1).detach()
    drawn, _ = net.policy.get_action(obs.expand(20_000, 8), generator=torch.Generator().manual_seed(1))
    found = torch.bincount(drawn, minlength=5) / 20_000
    assert ((found - probs).abs() < 4 * (probs * (1 - probs) / 20_000).sqrt()).all()
    assert probs.max() < 0.9  # else the line above tells little


def test_a_generator_decides_the_draws() -> None:
    net, obs = model(), torch.randn(40, 8)
    draws = [net.get_action_and_value(obs, generator=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("shared", [False, True])
def test_initial_weights_are_orthogonal_with_the_usual_gains(shared: bool) -> None:
    net = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64, shared=shared)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    assert len(layers) == (4 if shared else 6)
    for name, layer in layers.items():
        gain = 0.01 if name == "policy.head" else 1.0 if name in ("critic", "critic.head") else math.sqrt(2)
        singular = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
        assert (layer.bias == 0).all()
    _, _, entropy = net.evaluate(torch.randn(9, 128), torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(entropy, torch.full((9,), math.log(50)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_only_a_shared_trunk_feels_both_losses(shared: bool) -> None:
    net, obs = model(shared), torch.randn(4, 8)
    net.value(obs).sum().backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None}
    assert any(name.startswith("policy.trunk") for name in touched) is shared
    assert not any(name.startswith("policy.head") for name in touched)
    log_probs, _, _ = net.evaluate(obs, torch.zeros(4, dtype=torch.int64))
    log_probs.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_entropys_gradient_is_that_of_torch() -> None:
    net, obs = model(), torch.randn(6, 8)
    ours = torch.autograd.grad(net.evaluate(obs, torch.zeros(6, dtype=torch.int64))[2].sum(), net.policy.head.weight)
    oracle = torch.distributions.Categorical(logits=net.policy(obs)).entropy().sum()
    torch.testing.assert_close(ours, torch.autograd.grad(oracle, net.policy.head.weight))


def test_wrong_shapes_are_named() -> None:
    for net in (model(), model(shared=True)):
        for call in (net, net.value, net.get_action_and_value, net.policy):
            with pytest.raises(ValueError, match=r"obs: shape \(3, 7\), expected \(\.\.\., 8\)"):
                call(torch.zeros(3, 7))
        with pytest.raises(ValueError, match=r"actions: shape \(3, 1\), expected \(3,\)"):
            net.evaluate(torch.zeros(3, 8), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="obs"):
        ValueNetwork(8)(torch.zeros(()))
    with pytest.raises(ValueError, match="action_dim: 0"):
        PolicyNetwork(8, 0)


def test_the_defaults_are_the_specified_ones() -> None:
    assert PolicyNetwork(10, 3)(torch.zeros(2, 10)).shape == (2, 3)
    assert ValueNetwork(10)(torch.zeros(2, 10)).shape == (2,)
    assert PolicyNetwork(10, 3).head.in_features == ValueNetwork(10).head.in_features == 64


# ------------------------------------------------------------------------------------- real-valued actions
def gaussian(log_std: float = -0.4) -> GaussianActorCritic:
    torch.manual_seed(0)
    net = GaussianActorCritic(obs_dim=8, action_dim=3, hidden_dim=16, log_std=log_std)
    with torch.no_grad():
        net.policy.head.weight.mul_(200)
        net.log_std += torch.tensor([0.0, 0.3, -0.5])
    return net


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gaussian_acting_and_evaluating_agree_with_torch(shape: tuple[int, ...], deterministic: bool) -> None:
    net, obs = gaussian(), torch.randn(*shape, 8)
    action, log_prob, value = net.get_action_and_value(obs, deterministic)
    assert action.shape == (*shape, 3)
    assert not action.requires_grad or deterministic
    log_probs, values, entropy = net.evaluate(obs, action)
    assert log_prob.shape == value.shape == entropy.shape == shape
    assert torch.equal(log_prob, log_probs)
    assert torch.equal(value, values)
    assert torch.equal(value, net.value(obs))
    oracle = torch.distributions.Normal(net.policy(obs), net.log_std.exp().expand(*shape, 3))
    torch.testing.assert_close(log_probs, oracle.log_prob(action).sum(-1))
    torch.testing.assert_close(entropy, oracle.entropy().sum(-1))
    if deterministic:
        assert torch.equal(action, net.policy(obs))


def test_gaussian_draws_follow_the_policy() -> None:
    net, obs = gaussian(), torch.randn(1, 8)
    drawn, _, _ = net.get_action_and_value(obs.expand(20_000, 8), generator=torch.Generator().manual_seed(1))
    std = net.log_std.exp().detach()
    assert ((drawn.mean(0) - net.policy(obs)[0]).abs() < 4 * std / 20_000**0.5).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.03, atol=0)
    again = net.get_action_and_value(obs.expand(20_000, 8), generator=torch.Generator().manual_seed(1))[0]
    assert torch.equal(drawn, again)


def test_gaussian_gradients_reach_mean_and_deviation() -> None:
    """d log p / d log_std = ((a - mean) / std)^2 - 1, and the entropy's is 1 for each component."""
    net, obs = gaussian(), torch.randn(1, 8)
    action = torch.tensor([[0.3, -2.0, 1.0]])
    log_probs, _, entropy = net.evaluate(obs, action)
    (found,) = torch.autograd.grad(log_probs.sum(), net.log_std, retain_graph=True)
    scaled = (action - net.policy(obs)) * (-net.log_std).exp()
    torch.testing.assert_close(found, (scaled.square() - 1)[0].detach())
    (found,) = torch.autograd.grad(entropy.sum(), net.log_std)
    assert found.tolist() == [1.0] * 3


def test_gaussian_starts_near_zero_and_names_wrong_shapes() -> None:
    net = GaussianActorCritic(8, 3)
    assert net.policy(torch.randn(50, 8)).abs().max() < 0.1
    assert net.log_std.tolist() == [0.0] * 3
    with pytest.raises(ValueError, match=r"actions: shape \(4,\), expected \(4, 3\)"):
        net.evaluate(torch.zeros(4, 8), torch.zeros(4))


# ------------------------------------------------------------------------------------- several discrete actions
def multi_discrete(logits: list[float], sizes: tuple[int, ...]) -> MultiDiscreteActorCritic:
    """A policy whose logits are these at every observation."""
    model = MultiDiscreteActorCritic(3, sizes, 8)
    with torch.no_grad():
        model.policy.head.weight.zero_()
        model.policy.head.bias.copy_(torch.tensor(logits))
    return model


def test_several_choices_have_the_sum_of_log_probs_and_entropies() -> None:
    """Probabilities (1/4, 3/4) and (1/2, 1/3, 1/6), by hand."""
    model = multi_discrete([math.log(x) for x in (1, 3, 3, 2, 1)], (2, 3))
    obs = torch.randn(2, 3)
    log_probs, values, entropy = model.evaluate(obs, torch.tensor([[1, 0], [0, 2]]))
    assert log_probs.tolist() == pytest.approx([math.log(3 / 8), math.log(1 / 24)], rel=1e-5)
    shares = ((1 / 4, 3 / 4), (1 / 2, 1 / 3, 1 / 6))
    expected = -sum(p * math.log(p) for part in shares for p in part)
    assert entropy.tolist() == pytest.approx([expected, expected], rel=1e-5)
    torch.testing.assert_close(values, model.value(obs))


def test_a_binary_choice_is_a_bernoulli_of_the_difference_of_its_logits() -> None:
    model = multi_discrete([0.3, 1.0, -0.5, 0.2], (2, 2))
    bernoulli = torch.distributions.Bernoulli(logits=torch.tensor([0.7, 0.7]))
    for action in ([0, 0], [0, 1], [1, 0], [1, 1]):
        found, _, entropy = model.evaluate(torch.zeros(1, 3), torch.tensor([action]))
        assert float(found.detach()) == pytest.approx(
            float(bernoulli.log_prob(torch.tensor(action).float()).sum()), rel=1e-5
        )
        assert float(entropy.detach()) == pytest.approx(float(bernoulli.entropy().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_several_choices_are_drawn_and_scored_alike(shape: tuple[int, ...], deterministic: bool) -> None:
    torch.manual_seed(0)
    model, obs = MultiDiscreteActorCritic(3, (2, 4, 3), 8), torch.randn(*shape, 3)
    action, log_prob, value = model.get_action_and_value(obs, deterministic)
    assert (action.shape, action.dtype) == ((*shape, 3), torch.int64)
    found, values, entropy = model.evaluate(obs, action.float())  # as a buffer holds them
    torch.testing.assert_close(found, log_prob)
    torch.testing.assert_close(values, value)
    assert found.shape == values.shape == entropy.shape == shape
    if deterministic:
        parts = torch.split(model(obs)[0], [2, 4, 3], -1)
        assert torch.equal(action, torch.stack([part.argmax(-1) for part in parts], -1))


def test_several_choices_are_drawn_independently_by_their_shares() -> None:
    model = multi_discrete([math.log(x) for x in (1, 3, 3, 2, 1)], (2, 3))
    drawn, _, _ = model.get_action_and_value(torch.zeros(20000, 3), generator=torch.Generator().manual_seed(0))
    for first, p in enumerate((1 / 4, 3 / 4)):
        for second, q in enumerate((1 / 2, 1 / 3, 1 / 6)):
            share = (drawn == torch.tensor([first, second])).all(-1).float().mean()
            assert float(share) == pytest.approx(p * q, abs=0.015)


def test_several_choices_name_wrong_shapes_and_are_not_computed_in_numpy() -> None:
    model = MultiDiscreteActorCritic(3, (2, 4), 8)
    assert model.action_dim == 6
    assert numpy_networks(model) is None
    with pytest.raises(ValueError, match=r"actions: shape \(5,\), expected \(5, 2\)"):
        model.evaluate(torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ValueError, match="components: 0, expected 1 or more"):
        MultiDiscreteActorCritic(3, ())
    with pytest.raises(ValueError, match=r"sizes\[1\]: 0, expected 1 or more"):
        MultiDiscreteActorCritic(3, (2, 0))
