"""Two tanh networks, a policy and a critic, run and differentiated in NumPy: the fast path of PPO on vectors.

A step of PPO on networks this small is about sixty operations of a few microseconds each; the overhead of torch and autograd
is larger than each operation.

Plain form: ``accord.models.heads.ActorCritic`` and ``accord.models.heads.GaussianActorCritic`` under
``accord.training.policy_loss.PolicyLoss``, to rounding; compared in ``tests/training/test_numpy_updater.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
_HALF_LOG_TWO_PI, _ONE = np.float32(0.5 * math.log(2 * math.pi)), np.float32(1)
_TINY = 1e-30  # below torch.rand's smallest positive number; replaces 0, which has no logarithm


@dataclass(frozen=True, slots=True)
class StepBatch:
    """``B`` actions with the rollout's numbers, float32; ``actions`` int64 where they are discrete."""

    observations: Array  # (B, obs_dim)
    actions: Array  # (B,) or (B, action_dim)
    old_logprobs: Array  # (B,)
    values: Array  # (B,)
    advantages: Array  # (B,)
    returns: Array  # (B,)


@dataclass(frozen=True, slots=True)
class LossCoefficients:
    """The coefficients of the loss that this path computes; ``clip_range_vf`` 0: values are not clipped."""

    policy: float  # weight of the clipped surrogate
    clip_range: float
    value: float
    clip_range_vf: float
    entropy: float


ToOutput = Callable[[Array, LossCoefficients], Array]
"""From the loss's derivative with respect to log-probabilities (B,) to that of the policy's output (B, action_dim)."""


class NumpyActorCritic:
    """Policy and critic on the memory of given parameters, so that both sides see every change.

    All parameters lie in one flat array, the two networks side by side, so that both run in the same calls.
    """

    def __init__(self, parameters: Sequence[Tensor], discrete: bool, compiled: bool = False) -> None:
        """``parameters``: views, one after another, of one flat float32 array on the CPU, as ``as_one_array`` makes them.

        ``compiled``: element-wise passes by ``tanh_numba``, which pays in runs of thousands of steps.
        """
        self.tanh_of_sum, self.through_tanh = _tanh_of_sum, _through_tanh
        if compiled:
            from accord.kernels.tanh_numba import tanh_of_sum, through_tanh

            self.tanh_of_sum, self.through_tanh = tanh_of_sum, through_tanh
        self.discrete = discrete
        self.width, self.obs_dim = (int(size) for size in parameters[0].shape)
        self.action_dim = int(parameters[8].shape[0])
        numbers = sum(p.numel() for p in parameters)
        self.flat: Array = parameters[0].detach().as_strided((numbers,), (1,)).numpy()
        self.gradient = np.zeros_like(self.flat)
        self._weights, self._gradients = self._views(self.flat), self._views(self.gradient)
        w1, b1, w2, b2, wp, bp = self._weights[:6]
        self._policy = (w1[: self.width].T, b1[: self.width], w2[0].T, b2[0], wp.T, bp)

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
        first = np.dot(observations, w1.T)
        self.tanh_of_sum(first, b1)
        second = np.empty((2, len(first), self.width), dtype=np.float32)
        np.matmul(self._apart(first), w2.transpose(0, 2, 1), out=second)
        self.tanh_of_sum(second[0], b2[0])
        self.tanh_of_sum(second[1], b2[1])
        output = np.dot(second[0], wp.T)
        output += bp
        values = np.dot(second[1], wv)
        values += bv
        return first, second, output, values

    def _output(self, observations: Array) -> Array:
        """(B, A) the policy's output alone: half the work, in few calls, for a step of a rollout."""
        w1, b1, w2, b2, wp, bp = self._policy
        first = np.dot(observations, w1)
        self.tanh_of_sum(first, b1)
        second = np.dot(first, w2)
        self.tanh_of_sum(second, b2)
        output: Array = np.dot(second, wp)
        output += bp
        return output

    def _apart(self, both: Array) -> Array:
        apart: Array = both.reshape(len(both), 2, self.width).transpose(1, 0, 2)
        return apart

    def values(self, observations: Array) -> Array:
        """(B,) from (B, obs_dim)."""
        return self._run(observations)[3]

    def sampling_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Array:
        """The random numbers of ``sample`` for a whole rollout, (*shape, action_dim): Gumbel or normal."""
        if not self.discrete:
            normal: Array = torch.randn((*shape, self.action_dim), generator=generator).numpy()
            return normal
        uniform = torch.rand((*shape, self.action_dim), generator=generator).clamp_(min=_TINY)
        gumbel: Array = uniform.log_().neg_().log_().neg_().numpy()
        return gumbel

    def sample(self, observations: Array, noise: Array) -> Array:
        """Actions, (B,) or (B, action_dim), without their log-probabilities, which ``score`` computes for a whole rollout.

        The largest of logits plus Gumbel numbers is an action drawn from their softmax (Maddison et al. 2014).
        """
        output = self._output(observations)
        if self.discrete:
            output += noise
            actions: Array = output.argmax(1)
            return actions
        output += noise * np.exp(self._weights[8])
        return output

    def score(self, observations: Array, actions: Array) -> tuple[Array, Array]:
        """Log-probabilities (B,) of the actions, and values (B,)."""
        _, _, output, values = self._run(observations)
        if self.discrete:
            return _log_softmax(output)[0][np.arange(len(actions)), actions], values
        return self._score_normal(output, actions)[0], values

    def differentiate(self, steps: StepBatch, coefficients: LossCoefficients) -> dict[str, float]:
        """Sets ``gradient`` to that of the loss summed over the steps; returns the sums of loss and metrics."""
        first, second, output, values = self._run(steps.observations)
        score = self._score_discrete if self.discrete else self._score_normal
        new, entropy, to_output = score(output, steps.actions)
        log_ratio = new - steps.old_logprobs
        ratio = np.exp(log_ratio)
        unclipped = ratio * steps.advantages
        clipped = (
            np.minimum(np.maximum(ratio, 1 - coefficients.clip_range), 1 + coefficients.clip_range) * steps.advantages
        )
        clip_active = clipped < unclipped
        objective = np.minimum(unclipped, clipped)
        value_loss, to_value, value_clip_active = _value_loss(values, steps, coefficients.clip_range_vf)
        policy, value, entropy_sum = -_sum(objective), _sum(value_loss), _sum(entropy)
        unclipped[clip_active] = 0
        unclipped *= np.float32(-coefficients.policy)
        to_value *= np.float32(coefficients.value)
        self._back(steps.observations, first, second, to_output(unclipped, coefficients), to_value)
        return {
            "loss": coefficients.policy * policy - coefficients.entropy * entropy_sum + coefficients.value * value,
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": float(np.count_nonzero(clip_active)),
            "approx_kl": _sum(np.expm1(log_ratio) - log_ratio),
            "ratio": _sum(ratio),
            "value_clip_fraction": float(value_clip_active),
            "value": _sum(values),
            "entropy": entropy_sum,
        }

    def _score_discrete(self, logits: Array, actions: Array) -> tuple[Array, Array, ToOutput]:
        logprobs, probs = _log_softmax(logits)
        entropies = -np.einsum("ba,ba->b", probs, logprobs)
        taken = np.arange(len(actions)), actions

        def to_output(to_logprob: Array, coefficients: LossCoefficients) -> Array:
            gradient: Array = probs * -to_logprob[:, None]
            gradient[taken] += to_logprob
            if scale := coefficients.entropy:
                gradient += np.float32(scale) * probs * (logprobs + entropies[:, None])
            return gradient

        return logprobs[taken], entropies, to_output

    def _score_normal(self, means: Array, actions: Array) -> tuple[Array, Array, ToOutput]:
        log_std = self._weights[8]
        scaled = (actions - means) * np.exp(-log_std)
        entropy = np.full(len(means), (log_std + np.float32(0.5) + _HALF_LOG_TWO_PI).sum(), dtype=np.float32)

        def to_output(to_logprob: Array, coefficients: LossCoefficients) -> Array:
            np.dot(to_logprob, scaled * scaled - 1, out=self._gradients[8])
            self._gradients[8][:] -= np.float32(coefficients.entropy * len(means))
            to_means: Array = to_logprob[:, None] * scaled * np.exp(-log_std)
            return to_means

        return -(scaled * scaled / 2 + log_std + _HALF_LOG_TWO_PI).sum(1), entropy, to_output

    def _back(self, observations: Array, first: Array, second: Array, to_output: Array, to_value: Array) -> None:
        w2, wp, wv = (self._weights[i] for i in (2, 4, 6))
        d_w1, d_b1, d_w2, d_b2, d_wp, d_bp, d_wv, d_bv = self._gradients[:8]
        np.dot(to_output.T, second[0], out=d_wp)
        np.dot(_ones(len(to_output)), to_output, out=d_bp)
        np.dot(to_value, second[1], out=d_wv)
        d_bv[0] = _sum(to_value)
        inner = np.empty_like(second)
        np.dot(to_output, wp, out=inner[0])
        np.multiply(to_value[:, None], wv, out=inner[1])
        self.through_tanh(inner[0], second[0], d_b2[0])
        self.through_tanh(inner[1], second[1], d_b2[1])
        np.matmul(inner.transpose(0, 2, 1), self._apart(first), out=d_w2)
        outer = np.empty_like(first)
        np.matmul(inner, w2, out=self._apart(outer))
        self.through_tanh(outer, first, d_b1)
        np.dot(outer.T, observations, out=d_w1)


def as_one_array(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the tensors as views, one after another, of one new flat array."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


@lru_cache(maxsize=8)
def _ones(n: int) -> Array:
    """Ones: for a few numbers, a product with them takes a third of the time of ``sum``."""
    return np.ones(n, dtype=np.float32)


def _sum(x: Array) -> float:
    return float(np.dot(x, _ones(len(x))))


def _log_softmax(logits: Array) -> tuple[Array, Array]:
    """The logarithm of the softmax, and the softmax."""
    shifted: Array = logits - np.maximum.reduce(logits, 1, keepdims=True)
    probs = np.exp(shifted)
    total = np.dot(probs, _ones(probs.shape[1]))[:, None]
    probs /= total
    shifted -= np.log(total)
    return shifted, probs


def _tanh_of_sum(x: Array, bias: Array) -> None:
    """In place: x (B, N) becomes tanh(x + bias (N,))."""
    x += bias
    np.tanh(x, out=x)


def _through_tanh(gradient: Array, activation: Array, to_bias: Array) -> None:
    """In place: the gradient (B, N) of tanh's value becomes that of its argument; to_bias (N,) its sum over rows."""
    slope = activation * activation
    np.subtract(_ONE, slope, out=slope)
    gradient *= slope
    np.dot(_ones(len(gradient)), gradient, out=to_bias)


def _value_loss(values: Array, steps: StepBatch, clip_range: float) -> tuple[Array, Array, int]:
    """Half the squared error (B,), its derivative, and how often the clipped error is the worse of the two."""
    error = values - steps.returns
    if not clip_range:
        return error * error / 2, error, 0
    moved = values - steps.values
    near = np.minimum(np.maximum(moved, -clip_range), clip_range)
    beyond = near != moved
    near += steps.values
    near -= steps.returns
    near *= near
    far = error * error
    clip_active = (near > far) & beyond
    loss = np.maximum(near, far)
    loss /= 2
    error[clip_active] = 0
    return loss, error, int(np.count_nonzero(clip_active))
