"""Running scales of observations and rewards: "The 37 Implementation Details of PPO", continuous actions 6-9.

Statistics are those of all data so far, by the parallel rule of Chan et al. (1979), in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

EPSILON = 1e-8


class RunningMoments:
    """Mean and population variance of all rows so far, one for each component; 0 and 1 before the first.

    >>> moments = RunningMoments(())
    >>> for batch in ([1.0, 2.0], [6.0]):
    ...     moments.update(np.array(batch))
    >>> float(moments.mean), round(float(moments.variance), 6)
    (3.0, 4.666667)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0.0
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)

    def update(self, rows: np.ndarray) -> None:
        """Adds (n, *shape) rows; n may be 0."""
        n = len(rows)
        if n == 0:
            return
        mean, variance = rows.mean(0, dtype=np.float64), rows.var(0, dtype=np.float64)
        total = self.count + n
        gap = mean - self.mean
        squares = self.count * self.variance + n * variance + gap * gap * (self.count * n / total)
        self.mean = self.mean + gap * (n / total)
        self.variance, self.count = squares / total, total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": torch.tensor(self.mean), "variance": torch.tensor(self.variance)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = float(state["count"])
        self.mean, self.variance = state["mean"].numpy().copy(), state["variance"].numpy().copy()


class Normalizer:
    """Observations to mean 0 and deviation 1; rewards divided by the deviation of their discounted running sum.

    Rewards are not shifted: that would change the optimal policy.  Both are clipped at ``clip``.  What is switched off
    is returned unchanged.  ``learn=False`` leaves the statistics as they are, for evaluation.
    """

    def __init__(
        self, obs_dim: int, n_envs: int, gamma: float, observations: bool, rewards: bool, clip: float = 10.0
    ) -> None:
        self.gamma, self.clip = gamma, clip
        self.seen = RunningMoments((obs_dim,)) if observations else None
        self.returns = RunningMoments(()) if rewards else None
        self.discounted = np.zeros(n_envs)

    def observations(self, raw: np.ndarray, valid: np.ndarray | None = None, learn: bool = True) -> np.ndarray:
        """(n, obs_dim) float32; only rows where ``valid`` (n,) bool is true update the statistics."""
        if self.seen is None:
            return raw
        if learn:
            self.seen.update(raw if valid is None or valid.all() else raw[valid])
        scaled = (raw - self.seen.mean) / np.sqrt(self.seen.variance + EPSILON)
        clipped: np.ndarray = np.clip(scaled, -self.clip, self.clip).astype(np.float32)
        return clipped

    def rewards(self, raw: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """(n_envs,) one step's rewards; ``ended`` (n_envs,) bool where it ended an episode, which resets the sum.

        Steps where ``valid`` is false took no action and change no statistics.
        """
        if self.returns is None:
            return raw
        self.discounted = np.where(valid, self.discounted * self.gamma + raw, self.discounted)
        self.returns.update(self.discounted if valid.all() else self.discounted[valid])
        scaled: np.ndarray = np.clip(raw / np.sqrt(self.returns.variance + EPSILON), -self.clip, self.clip)
        self.discounted = np.where(ended, 0.0, self.discounted)
        return scaled

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": self.seen.state_dict() if self.seen else {},
            "returns": self.returns.state_dict() if self.returns else {},
            "discounted": torch.tensor(self.discounted),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.seen:
            self.seen.load_state_dict(state["seen"])
        if self.returns:
            self.returns.load_state_dict(state["returns"])
        self.discounted = state["discounted"].numpy().copy()


class FixedScales(Normalizer):
    """Observations by statistics that are given and stay as they are; rewards unchanged.  Records observations as they come.

    For a worker: which steps the statistics have seen, and in which order, is decided where the steps of all workers meet.
    """

    def __init__(self, obs_dim: int, n_envs: int, gamma: float, observations: bool, clip: float) -> None:
        super().__init__(obs_dim, n_envs, gamma, observations, rewards=False, clip=clip)
        self.raw: list[np.ndarray] = []
        """(n_envs, obs_dim) each: what would have updated the statistics."""
        self.cut: list[np.ndarray] = []
        """What would not: final observations of truncated episodes."""

    def begin(self, statistics: dict[str, Any], raw: np.ndarray) -> np.ndarray:
        """(n_envs, obs_dim) the current observations ``raw`` by new statistics; drops the records."""
        if self.seen:
            self.seen.load_state_dict(statistics)
        self.raw, self.cut = [raw], []
        return super().observations(raw, learn=False)

    def observations(self, raw: np.ndarray, valid: np.ndarray | None = None, learn: bool = True) -> np.ndarray:
        (self.raw if learn else self.cut).append(raw)
        return super().observations(raw, learn=False)
