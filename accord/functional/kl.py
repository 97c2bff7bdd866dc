"""Estimators of the KL divergence from a reference, and the coefficient that keeps it near a target.

Estimators after Schulman, "Approximating KL divergence" (2020), on log-ratios log pi(a) - log ref(a) of actions drawn
from pi: k1 and k3 are unbiased values of KL(pi || ref); k2 is biased but has the right gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """log pi - log ref: unbiased; negative for some actions.  The estimator to use in a reward."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, never negative; its expected gradient is that of KL(pi || ref)."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """ref / pi - 1 - log(ref / pi): unbiased, never negative, of less variance than k1 near the reference."""
    return torch.expm1(-log_ratio) + log_ratio


def kl_in_loss(kind: str) -> Callable[[Tensor], Tensor]:
    """The estimator named "k2" or "k3", for use as a loss on actions drawn from the policy itself.

    Differentiated with the draws held fixed, k2 has the gradient of KL(pi || ref), k3 that of KL(ref || pi), and k1
    none in expectation: ValueError for k1 and for unknown names.
    """
    if kind == "k1":
        raise ValueError("k1 as a loss has an expected gradient of zero: use k2 in the loss, or k1 in the reward")
    if kind not in ("k2", "k3"):
        raise ValueError(f"KL estimator {kind!r} is not known: use k2 or k3")
    return k2 if kind == "k2" else k3


@dataclass(frozen=True, slots=True)
class FixedKL:
    """A constant coefficient."""

    beta: float

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta: {self.beta}, expected 0 or more")

    def update(self, mean_sequence_kl: float, n_episodes: int) -> FixedKL:
        """Itself, whatever was measured."""
        return self

    def state(self) -> dict[str, float]:
        """The fields, for a checkpoint: ``FixedKL(**state)`` restores."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A coefficient that adapts to a target KL (Ziegler et al. 2019, eq. 4; lm-human-preferences: 0.15, 6, 10,000)."""

    beta: float
    target: float  # nats per sequence
    horizon: int  # episodes

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta: {self.beta}, expected 0 or more")
        for name in ("target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a positive number")

    def update(self, mean_sequence_kl: float, n_episodes: int) -> AdaptiveKL:
        """beta * (1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon).

        ``mean_sequence_kl`` is the KL summed over each reply's tokens and averaged over the ``n_episodes`` replies of
        the batch, in nats.
        """
        error = min(max(mean_sequence_kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * n_episodes / self.horizon))

    def state(self) -> dict[str, float]:
        """The fields, for a checkpoint: ``AdaptiveKL(**state)`` restores."""
        return asdict(self)
