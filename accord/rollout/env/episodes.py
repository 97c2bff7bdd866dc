"""Environments side by side, stepped in one call, resumed bit-exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from accord.rollout.env.spaces import Spaces

SeedOf = Callable[[int, int], int]
"""(environment, episode) to a seed."""


class Stepped(NamedTuple):
    """One step of ``n`` environments."""

    rewards: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool: the episode is over
    truncated: np.ndarray  # (n,) bool: a time limit cut the episode
    valid: np.ndarray  # (n,) bool: false where no action was taken (``waiting`` before the step)
    final: np.ndarray  # (n, obs_dim) float32: the observation that the step led to, before any reset
    ref_logprobs: np.ndarray | None = None  # (n,) float64, of the actions under a reference policy, where there is one


class Vectors(Protocol):
    """Several environments side by side."""

    spaces: Spaces
    observations: np.ndarray
    """(n, obs_dim) float32: the input of the next action."""
    waiting: np.ndarray
    """(n,) bool: true where the next step takes no action and only begins an episode."""

    def step(self, actions: np.ndarray) -> Stepped: ...

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EpisodeVectors:
    """Environments of one kind; where an episode ends, the next begins within the same step, from its seed.

    ``gymnasium.vector.SyncVectorEnv`` takes several times as long per step on small tasks.
    The state is each environment's episode number and the actions since; loading replays them from the episode's seed,
    which is exact for every task that is a function of seed and actions.
    """

    def __init__(
        self, environments: Sequence[Any], spaces: Spaces, seed_of: SeedOf, with_reference: bool = False
    ) -> None:
        """``with_reference``: every step's ``info`` has "ref_logprob"."""
        self.environments, self.spaces, self.seed_of, self.with_reference = (
            environments,
            spaces,
            seed_of,
            with_reference,
        )
        n = len(environments)
        self.episodes = [0] * n
        self.starts = [0] * n  # where in actions each one's episode begins
        self.actions: list[np.ndarray] = []
        self.waiting, self.valid = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        self.observations = self._begin_episodes(np.empty((n, self.spaces.obs_dim), dtype=np.float32), range(n))

    def _begin_episodes(self, observations: np.ndarray, which: Iterable[int]) -> np.ndarray:
        """The same array (n, obs_dim) with the first observations of new episodes where ``which`` says."""
        for i in which:
            seed = self.seed_of(i, self.episodes[i]) % 2**31
            observations[i], _ = self.environments[i].reset(seed=seed, options={"episode": self.episodes[i]})
        return observations

    def step(self, actions: np.ndarray) -> Stepped:
        """Acts in each; ``observations`` are the next episode's first ones where one has ended."""
        task_actions, n, over = self.spaces.to_task(actions), len(self.environments), []
        final, rewards = np.empty((n, self.spaces.obs_dim), dtype=np.float32), np.empty(n)
        terminated, truncated = np.empty(n, dtype=bool), np.empty(n, dtype=bool)
        reference = np.empty(n) if self.with_reference else None
        for i, environment in enumerate(self.environments):
            final[i], rewards[i], ended, cut, info = environment.step(task_actions[i])
            terminated[i], truncated[i] = ended, cut
            if reference is not None:
                reference[i] = info["ref_logprob"]
            if ended or cut:
                over.append(i)
        self.actions.append(task_actions)
        self.observations = final
        if over:
            for i in over:
                self.episodes[i] += 1
                self.starts[i] = len(self.actions)
            self.observations = self._begin_episodes(final.copy(), over)
            oldest = min(self.starts)
            if oldest > 1000:  # actions before every current episode are not needed again
                del self.actions[:oldest]
                self.starts = [start - oldest for start in self.starts]
        return Stepped(rewards, terminated, truncated, self.valid, final, reference)

    def close(self) -> None:
        for environment in self.environments:
            environment.close()

    def state_dict(self) -> dict[str, Any]:
        oldest = min(self.starts)
        actions = np.stack(self.actions[oldest:]) if len(self.actions) > oldest else np.zeros(0)
        return {
            "episodes": list(self.episodes),
            "starts": [start - oldest for start in self.starts],
            "actions": torch.from_numpy(actions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes, self.starts = list(state["episodes"]), list(state["starts"])
        self.actions = list(state["actions"].numpy())
        self.observations = self._begin_episodes(np.empty_like(self.observations), range(len(self.episodes)))
        for i, environment in enumerate(self.environments):
            for action in self.actions[self.starts[i] :]:
                self.observations[i] = environment.step(action[i])[0]
