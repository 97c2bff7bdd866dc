"""The tanh networks of ``ActorCritic`` and ``GaussianActorCritic``, run and differentiated by hand in numpy.

A step of PPO on networks this small is some sixty operations of a few microseconds each; torch and its autograd add more to
every one than it takes.  Loss and gradient are those of ``training/ppo_core.PPOObjective``, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from accord.models.actor_critic import ActorCritic, AnyActorCritic, GaussianActorCritic, PolicyNetwork, ValueNetwork

Array = np.ndarray
_HALF_LOG_TWO_PI = np.float32(0.5 * math.log(2 * math.pi))


@dataclass(frozen=True, slots=True)
class Steps:
    """``B`` actions and what was known when they were taken; float32, ``actions`` int64 where they are numbers."""

    observations: Array  # (B, obs_dim)
    actions: Array  # (B,) or (B, action_dim)
    logprobs: Array  # (B,)
    values: Array  # (B,)
    advantages: Array  # (B,)
    returns: Array  # (B,)


@dataclass(frozen=True, slots=True)
class Weights:
    """The numbers of the loss; ``clip_range_vf`` 0: values are not clipped."""

    clip_range: float
    clip_range_vf: float
    vf_coef: float
    ent_coef: float
    policy: float  # of the policy's own terms; 0 while only the critic learns


def has_hand_gradient(model: object) -> bool:
    """Whether a model is of the kind that ``HandGradient`` computes: two networks apart, in float32 on a CPU."""
    if not (isinstance(model, (ActorCritic, GaussianActorCritic)) and isinstance(model.critic, ValueNetwork)):
        return False
    first = next(model.parameters())
    return first.device.type == "cpu" and all(p.dtype is torch.float32 and p.requires_grad for p in model.parameters())


ToOutput = Callable[[Array, Weights], Array]
"""From the loss's derivative by log-probability (B,) to that by the policy's output (B, action_dim)."""


class HandGradient:
    """Shares its memory with a model: what one changes, the other sees.

    All parameters lie in one flat array, the two networks side by side, so that both run in the same calls.
    """

    def __init__(self, model: AnyActorCritic, compiled: bool = False) -> None:
        """``compiled``: element-wise passes by ``hand_kernels``, whose loading pays after some thousand steps."""
        self.tanh_of_sum, self.through_tanh = _tanh_of_sum, _through_tanh
        if compiled:
            from accord.models.hand_kernels import tanh_of_sum, through_tanh

            self.tanh_of_sum, self.through_tanh = tanh_of_sum, through_tanh
        policy, critic = model.policy, model.critic
        assert isinstance(critic, ValueNetwork)
        self.discrete = isinstance(model, ActorCritic)
        self.obs_dim, self.action_dim, width = model.obs_dim, model.action_dim, policy.head.in_features
        self.width = width
        order = _in_order(policy, critic, None if isinstance(model, ActorCritic) else model.log_std)
        self.flat = np.concatenate([p.detach().numpy().reshape(-1) for p in order])
        self.gradient = np.zeros_like(self.flat)
        place = 0
        for parameter in order:
            view = torch.from_numpy(self.flat[place : place + parameter.numel()]).view(parameter.shape)
            parameter.data = view
            place += parameter.numel()
        self._weights, self._gradients = self._views(self.flat), self._views(self.gradient)

    def _views(self, flat: Array) -> list[Array]:
        shapes: list[tuple[int, ...]] = [
            (2 * self.width, self.obs_dim), (2 * self.width,), (2, self.width, self.width), (2, self.width),
            (self.action_dim, self.width), (self.action_dim,), (self.width,), (1,),
        ]  # fmt: skip
        shapes += [] if self.discrete else [(self.action_dim,)]
        views, place = [], 0
        for shape in shapes:
            size = math.prod(shape)
            views.append(flat[place : place + size].reshape(shape))
            place += size
        return views

    def _run(self, observations: Array) -> tuple[Array, Array, Array, Array]:
        """First hidden states (B, 2H), second ones (2, B, H), the policy's output (B, A), values (B,)."""
        w1, b1, w2, b2, wp, bp, wv, bv = self._weights[:8]
        first = observations @ w1.T
        self.tanh_of_sum(first, b1)
        second = np.empty((2, len(first), self.width), dtype=np.float32)
        np.matmul(self._apart(first), w2.transpose(0, 2, 1), out=second)
        self.tanh_of_sum(second[0], b2[0])
        self.tanh_of_sum(second[1], b2[1])
        return first, second, second[0] @ wp.T + bp, second[1] @ wv + bv

    def _output(self, observations: Array) -> Array:
        """(B, A) the policy's output alone: half the work, in the fewest calls, for a step of a rollout."""
        w1, b1, w2, b2, wp, bp = self._weights[:6]
        first = observations @ w1[: self.width].T
        self.tanh_of_sum(first, b1[: self.width])
        second = first @ w2[0].T
        self.tanh_of_sum(second, b2[0])
        output: Array = second @ wp.T
        output += bp
        return output

    def _apart(self, both: Array) -> Array:
        apart: Array = both.reshape(len(both), 2, self.width).transpose(1, 0, 2)
        return apart

    def values(self, observations: Array) -> Array:
        """(B,) from (B, obs_dim)."""
        return self._run(observations)[3]

    def chances(self, shape: tuple[int, ...], generator: torch.Generator) -> Array:
        """What ``act`` draws with, for a whole rollout at once: uniform (*shape,), or normal (*shape, action_dim)."""
        drawn = torch.rand(shape, generator=generator)
        if not self.discrete:
            drawn = torch.randn((*shape, self.action_dim), generator=generator)
        numbers: Array = drawn.numpy()
        return numbers

    def draw(self, observations: Array, chances: Array) -> Array:
        """Actions, (B,) or (B, action_dim); ``assess`` says of a whole rollout's what the policy thinks of them."""
        output = self._output(observations)
        if not self.discrete:
            output += chances * np.exp(self._weights[8])
            return output
        output -= output.max(1, keepdims=True)
        np.exp(output, out=output)
        cumulated = output.cumsum(1)
        actions: Array = (cumulated[:, :-1] < (chances * cumulated[:, -1])[:, None]).sum(1)
        return actions

    def assess(self, observations: Array, actions: Array) -> tuple[Array, Array]:
        """Log-probabilities (B,) of actions taken, and values (B,)."""
        _, _, output, values = self._run(observations)
        score = self._score_discrete if self.discrete else self._score_normal
        return score(output, actions)[0], values

    def add(self, steps: Steps, weights: Weights) -> dict[str, float]:
        """Adds the gradient of the summed loss to ``gradient``; returns the sums over the steps of loss and metrics."""
        first, second, output, values = self._run(steps.observations)
        score = self._score_discrete if self.discrete else self._score_normal
        new, entropy, to_output = score(output, steps.actions)
        log_ratio = new - steps.logprobs
        ratio = np.exp(log_ratio)
        unclipped = -steps.advantages * ratio
        clipped = -steps.advantages * np.clip(ratio, 1 - weights.clip_range, 1 + weights.clip_range)
        bites = clipped > unclipped
        policy_loss = np.where(bites, clipped, unclipped)
        value_loss, to_value, value_bites = _value_loss(values, steps, weights.clip_range_vf)
        policy, value, freedom = float(policy_loss.sum()), float(value_loss.sum()), float(entropy.sum())
        to_logprob = np.where(bites, np.float32(0), unclipped) * np.float32(weights.policy)
        self._back(steps.observations, first, second, to_output(to_logprob, weights), to_value * weights.vf_coef)
        return {
            "loss": weights.policy * (policy - weights.ent_coef * freedom) + weights.vf_coef * value,
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": float(np.count_nonzero(bites)),
            "approx_kl": float((np.expm1(log_ratio) - log_ratio).sum()),
            "ratio": float(ratio.sum()),
            "value_clip_fraction": float(value_bites),
            "value": float(values.sum()),
            "entropy": freedom,
        }

    def _score_discrete(self, logits: Array, actions: Array) -> tuple[Array, Array, ToOutput]:
        logprobs = _log_softmax(logits)
        chances = np.exp(logprobs)
        entropies = -(chances * logprobs).sum(1)
        rows = np.arange(len(actions))

        def to_output(to_logprob: Array, weights: Weights) -> Array:
            gradient: Array = chances * -to_logprob[:, None]
            gradient[rows, actions] += to_logprob
            if scale := weights.policy * weights.ent_coef:
                gradient += np.float32(scale) * chances * (logprobs + entropies[:, None])
            return gradient

        return logprobs[rows, actions], entropies, to_output

    def _score_normal(self, means: Array, actions: Array) -> tuple[Array, Array, ToOutput]:
        log_std = self._weights[8]
        scaled = (actions - means) * np.exp(-log_std)
        entropy = np.full(len(means), (log_std + np.float32(0.5) + _HALF_LOG_TWO_PI).sum(), dtype=np.float32)

        def to_output(to_logprob: Array, weights: Weights) -> Array:
            self._gradients[8] += to_logprob @ (scaled * scaled - 1)
            self._gradients[8] -= np.float32(weights.policy * weights.ent_coef * len(means))
            to_means: Array = to_logprob[:, None] * scaled * np.exp(-log_std)
            return to_means

        return -(scaled * scaled / 2 + log_std + _HALF_LOG_TWO_PI).sum(1), entropy, to_output

    def _back(self, observations: Array, first: Array, second: Array, to_output: Array, to_value: Array) -> None:
        _, _, w2, _, wp, _, wv, _ = self._weights[:8]
        d_w1, d_b1, d_w2, d_b2, d_wp, d_bp, d_wv, d_bv = self._gradients[:8]
        d_wp += to_output.T @ second[0]
        d_bp += to_output.sum(0)
        d_wv += to_value @ second[1]
        d_bv += to_value.sum()
        inner = np.empty_like(second)
        np.matmul(to_output, wp, out=inner[0])
        np.multiply(to_value[:, None], wv, out=inner[1])
        self.through_tanh(inner[0], second[0], d_b2[0])
        self.through_tanh(inner[1], second[1], d_b2[1])
        d_w2 += np.matmul(inner.transpose(0, 2, 1), self._apart(first))
        outer = np.empty_like(first)
        np.matmul(inner, w2, out=self._apart(outer))
        self.through_tanh(outer, first, d_b1)
        d_w1 += outer.T @ observations


def _in_order(
    policy: PolicyNetwork, critic: ValueNetwork, log_std: torch.nn.Parameter | None
) -> list[torch.nn.Parameter]:
    layers = [(policy.trunk[0], critic.trunk[0]), (policy.trunk[2], critic.trunk[2])]
    order = [p for both in layers for name in ("weight", "bias") for p in (getattr(layer, name) for layer in both)]
    order += [policy.head.weight, policy.head.bias, critic.head.weight, critic.head.bias]
    return order if log_std is None else [*order, log_std]


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def _tanh_of_sum(x: Array, bias: Array) -> None:
    """In place: x (B, N) becomes tanh(x + bias (N,))."""
    x += bias
    np.tanh(x, out=x)


def _through_tanh(gradient: Array, activation: Array, to_bias: Array) -> None:
    """In place: gradient (B, N) by tanh's value becomes that by its argument; its sum over rows is added to to_bias."""
    gradient *= 1 - activation * activation
    to_bias += gradient.sum(0)


def _value_loss(values: Array, steps: Steps, clip_range: float) -> tuple[Array, Array, int]:
    """Half the squared error (B,), its derivative, and how often the clipped error is the worse of the two."""
    error = values - steps.returns
    if not clip_range:
        return error * error / 2, error, 0
    moved = values - steps.values
    near = steps.values + np.clip(moved, -clip_range, clip_range) - steps.returns
    bites = (near * near > error * error) & (np.abs(moved) > clip_range)
    loss = np.where(bites, near * near, error * error) / 2
    return loss, np.where(bites, np.float32(0), error), int(np.count_nonzero(bites))
