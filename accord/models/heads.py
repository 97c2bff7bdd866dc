"""Policy and value networks on vectors: an environment's observations or a language model's hidden states.

``ActorCritic`` has discrete actions, ``MultiDiscreteActorCritic`` several discrete ones at once, ``GaussianActorCritic``
continuous ones.

Two tanh layers a trunk; orthogonal weights of gain sqrt 2 in the trunk, 0.01 for the policy's last layer (so that the
first policy is close to uniform) and 1 for the value's; zero biases.  "The 37 Implementation Details of PPO", 2 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor, nn

from accord.kernels.numpy_actor_critic import NumpyActorCritic, as_one_array
from accord.models.plain import are_plain

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _trunk(obs_dim: int, hidden_dim: int) -> nn.Sequential:
    first, second = _linear(obs_dim, hidden_dim, math.sqrt(2)), _linear(hidden_dim, hidden_dim, math.sqrt(2))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh())


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {size}, expected 1 or more")


def _check_observations(obs: Tensor, obs_dim: int) -> None:
    if obs.dim() == 0 or obs.shape[-1] != obs_dim:
        raise ValueError(f"obs: shape {tuple(obs.shape)}, expected (..., {obs_dim})")


def _select_action(log_probs: Tensor, deterministic: bool, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """(…,) actions, the likeliest or sampled, from (…, A) log-probabilities, and their (…,) log-probabilities."""
    if deterministic:
        actions = log_probs.argmax(-1)
    else:
        rows = log_probs.detach().exp().reshape(-1, log_probs.shape[-1])
        actions = torch.multinomial(rows, 1, generator=generator).reshape(log_probs.shape[:-1])
    return actions, _gather(log_probs, actions)


def _gather(log_probs: Tensor, actions: Tensor) -> Tensor:
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


class PolicyNetwork(nn.Module):
    """Logits of ``action_dim`` discrete actions from observations (…, obs_dim)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        _check_sizes(obs_dim=obs_dim, action_dim=action_dim, hidden_dim=hidden_dim)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.trunk = _trunk(obs_dim, hidden_dim)
        self.head = _linear(hidden_dim, action_dim, 0.01)

    def forward(self, obs: Tensor) -> Tensor:
        """(…, action_dim) logits.  Raises ValueError where the last dimension is not obs_dim."""
        _check_observations(obs, self.obs_dim)
        return cast(Tensor, self.head(self.trunk(obs)))

    def get_action(
        self, obs: Tensor, deterministic: bool = False, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(actions (…,) int64, log_probs (…,)): drawn from the policy, or the likeliest action where deterministic."""
        return _select_action(torch.log_softmax(self(obs), -1), deterministic, generator)


class ValueNetwork(nn.Module):
    """The value of an observation: (…, obs_dim) to (…,)."""

    def __init__(self, obs_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        _check_sizes(obs_dim=obs_dim, hidden_dim=hidden_dim)
        self.obs_dim = obs_dim
        self.trunk = _trunk(obs_dim, hidden_dim)
        self.head = _linear(hidden_dim, 1, 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """(…,) values.  Raises ValueError where the last dimension is not obs_dim."""
        _check_observations(obs, self.obs_dim)
        return cast(Tensor, self.head(self.trunk(obs))).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy and value, each on its own trunk or, with ``shared``, both on the policy's.

    The orders differ: ``get_action_and_value`` is (action, log_prob, value), ``evaluate`` (log_probs, values, entropy).

    >>> model = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64)
    >>> action, log_prob, value = model.get_action_and_value(torch.zeros(1, 128))
    >>> action.shape, log_prob.shape, value.shape
    (torch.Size([1]), torch.Size([1]), torch.Size([1]))
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 64, shared: bool = False) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.shared = obs_dim, action_dim, shared
        self.policy = PolicyNetwork(obs_dim, action_dim, hidden_dim)
        self.critic = _linear(hidden_dim, 1, 1.0) if shared else ValueNetwork(obs_dim, hidden_dim)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (…, action_dim), values (…,)), with a shared trunk run once."""
        if not self.shared:
            return self.policy(obs), self.critic(obs)
        _check_observations(obs, self.obs_dim)
        features = self.policy.trunk(obs)
        return self.policy.head(features), self.critic(features).squeeze(-1)

    def get_action_and_value(
        self, obs: Tensor, deterministic: bool = False, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(action (…,) int64, log_prob (…,), value (…,)) for observations (…, obs_dim).

        ``generator`` must live on the observations' device.  Raises ValueError for a wrong shape.
        """
        logits, values = self(obs)
        return *_select_action(torch.log_softmax(logits, -1), deterministic, generator), values

    def evaluate(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log_probs, values, entropy), (…,) each, of ``actions`` (…,) taken at ``obs`` (…, obs_dim); entropy in nats.

        Raises ValueError for a wrong shape, naming what was expected and what was found.
        """
        logits, values = self(obs)
        if actions.shape != values.shape:
            raise ValueError(f"actions: shape {tuple(actions.shape)}, expected {tuple(values.shape)}")
        log_probs = torch.log_softmax(logits, -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return _gather(log_probs, actions.long()), values, entropy

    def value(self, obs: Tensor) -> Tensor:
        """(…,) the values alone."""
        if not self.shared:
            return cast(Tensor, self.critic(obs))
        _check_observations(obs, self.obs_dim)
        return cast(Tensor, self.critic(self.policy.trunk(obs))).squeeze(-1)


class GaussianActorCritic(nn.Module):
    """``ActorCritic`` for continuous actions: independent normal components around the network's output.

    The deviations are parameters of their own, the same in every state ("The 37 Implementation Details of PPO",
    continuous actions 1-3).  Actions are unclipped: the caller clips them to the task's bounds, and log-probabilities are
    of the unclipped action.
    """

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 64, log_std: float = 0.0) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.policy = PolicyNetwork(obs_dim, action_dim, hidden_dim)
        self.critic = ValueNetwork(obs_dim, hidden_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), log_std))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(means (…, action_dim), values (…,))."""
        return self.policy(obs), self.critic(obs)

    def _log_probs(self, means: Tensor, actions: Tensor) -> Tensor:
        scaled = (actions - means) * torch.exp(-self.log_std)
        return -(scaled.square() / 2 + self.log_std + _HALF_LOG_TWO_PI).sum(-1)

    def get_action_and_value(
        self, obs: Tensor, deterministic: bool = False, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(action (…, action_dim), log_prob (…,), value (…,)) for observations (…, obs_dim).

        Deterministic: the mean.  ``generator`` must live on the observations' device.
        """
        means, values = self(obs)
        actions = means
        if not deterministic:
            noise = torch.randn(means.shape, generator=generator, device=means.device)
            actions = (means + noise * self.log_std.exp()).detach()
        return actions, self._log_probs(means, actions), values

    def evaluate(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log_probs, values, entropy), (…,) each, of ``actions`` (…, action_dim) taken at ``obs`` (…, obs_dim).

        Raises ValueError for a wrong shape, naming what was expected and what was found.
        """
        means, values = self(obs)
        if actions.shape != means.shape:
            raise ValueError(f"actions: shape {tuple(actions.shape)}, expected {tuple(means.shape)}")
        entropy = (self.log_std + 0.5 + _HALF_LOG_TWO_PI).sum()
        return self._log_probs(means, actions), values, entropy.expand(values.shape)

    def value(self, obs: Tensor) -> Tensor:
        """(…,) the values alone."""
        return cast(Tensor, self.critic(obs))


class MultiDiscreteActorCritic(nn.Module):
    """``ActorCritic`` for actions of several independent discrete components, of ``sizes`` choices each.

    The distribution is a product: log-probabilities and entropies of the components add up ("The 37 Implementation
    Details of PPO", MultiDiscrete).  A binary component is one of two choices, its probability a logistic function of
    the difference of two logits.
    """

    def __init__(self, obs_dim: int, sizes: Sequence[int], hidden_dim: int = 64) -> None:
        super().__init__()
        _check_sizes(components=len(sizes), **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        self.obs_dim, self.sizes, self.action_dim = obs_dim, tuple(sizes), sum(sizes)
        self.policy = PolicyNetwork(obs_dim, self.action_dim, hidden_dim)
        self.critic = ValueNetwork(obs_dim, hidden_dim)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (…, action_dim), component after component, values (…,))."""
        return self.policy(obs), self.critic(obs)

    def _components(self, logits: Tensor) -> list[Tensor]:
        """Log-probabilities (…, size) of each component's choices."""
        return [torch.log_softmax(part, -1) for part in torch.split(logits, list(self.sizes), -1)]

    def get_action_and_value(
        self, obs: Tensor, deterministic: bool = False, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(action (…, components) int64, log_prob (…,), value (…,)) for observations (…, obs_dim).

        Deterministic: the likeliest choice of each.  ``generator`` must live on the observations' device.
        """
        logits, values = self(obs)
        drawn = [_select_action(part, deterministic, generator) for part in self._components(logits)]
        actions, log_probs = zip(*drawn, strict=True)
        return torch.stack(actions, -1), torch.stack(log_probs, -1).sum(-1), values

    def evaluate(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log_probs, values, entropy), (…,) each, of ``actions`` (…, components) taken at ``obs`` (…, obs_dim).

        Raises ValueError for a wrong shape, naming what was expected and what was found.
        """
        logits, values = self(obs)
        expected = (*values.shape, len(self.sizes))
        if actions.shape != expected:
            raise ValueError(f"actions: shape {tuple(actions.shape)}, expected {expected}")
        parts = self._components(logits)
        log_probs = [_gather(part, choice) for part, choice in zip(parts, actions.long().unbind(-1), strict=True)]
        entropies = [-(part.exp() * part).sum(-1) for part in parts]
        return torch.stack(log_probs, -1).sum(-1), values, torch.stack(entropies, -1).sum(-1)

    def value(self, obs: Tensor) -> Tensor:
        """(…,) the values alone."""
        return cast(Tensor, self.critic(obs))


AnyActorCritic: TypeAlias = "ActorCritic | MultiDiscreteActorCritic | GaussianActorCritic"
_LAYERS = (ActorCritic, GaussianActorCritic, PolicyNetwork, ValueNetwork, nn.Sequential, nn.Linear, nn.Tanh)


def numpy_networks(model: AnyActorCritic, compiled: bool = False) -> NumpyActorCritic | None:
    """The model's networks in NumPy, for a float32 model on the CPU with two trunks and no hooks; None for any other.

    NumPy computes one discrete action or real-valued ones, and not several discrete ones at once.

    The model's parameters move into one flat array, which both use from then on: each sees the other's changes.
    ``compiled``: see ``NumpyActorCritic``.
    """
    if type(model) not in (ActorCritic, GaussianActorCritic) or type(model.critic) is not ValueNetwork:
        return None
    if not are_plain([model], _LAYERS):
        return None
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" or p.dtype is not torch.float32 or not p.requires_grad for p in parameters):
        return None
    ordered = parameters_side_by_side(model)
    for parameter, view in zip(ordered, as_one_array(ordered), strict=True):
        parameter.data = view
    return NumpyActorCritic(ordered, discrete=isinstance(model, ActorCritic), compiled=compiled)


def parameters_side_by_side(model: AnyActorCritic) -> list[nn.Parameter]:
    """The parameters in the order of ``NumpyActorCritic``: layer by layer, policy before critic, weights before biases."""
    policy, critic = model.policy, cast(ValueNetwork, model.critic)
    layers = [(policy.trunk[0], critic.trunk[0]), (policy.trunk[2], critic.trunk[2])]
    order = [getattr(layer, name) for both in layers for name in ("weight", "bias") for layer in both]
    order += [policy.head.weight, policy.head.bias, critic.head.weight, critic.head.bias]
    return [*order, model.log_std] if isinstance(model, GaussianActorCritic) else order
