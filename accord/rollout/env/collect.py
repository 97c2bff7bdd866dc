"""Steps of environments, collected for any policy on vectors: one collector for Gymnasium tasks and token environments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from accord.kernels.numpy_actor_critic import NumpyActorCritic
from accord.models.heads import AnyActorCritic
from accord.rollout.env.buffer import RolloutBuffer
from accord.rollout.env.episodes import Stepped, Vectors
from accord.rollout.env.normalization import Normalizer


@dataclass(frozen=True, slots=True)
class StepRollout:
    """``n_steps`` of ``n_envs`` environments; the buffer holds them without advantages, and is reused by the next one."""

    buffer: RolloutBuffer
    last_values: np.ndarray  # (n_envs,) values of the observations after the last step
    valid: np.ndarray | None  # (n_steps · n_envs,) bool, false on steps that took no action (autoreset); None: all true
    ref_logprobs: np.ndarray | None  # (n_steps, n_envs) float64 of the actions under the reference, where there is one
    returns: tuple[float, ...]  # of the episodes that ended in this rollout, by the task's own rewards
    recent_returns: tuple[float, ...]  # of the last 100 episodes at most
    episodes: int  # that ended since the start of training
    timesteps: int  # since the start of training
    last_observations: np.ndarray  # (n_envs, obs_dim) after the last step
    cuts: tuple[tuple[int, np.ndarray, np.ndarray], ...]  # step, which environments (n_envs,), their final observations
    versions: np.ndarray | None = None  # (n_envs,) of the weights that acted, where they may be older than the newest


@dataclass(frozen=True, slots=True)
class StepActor:
    """The policy model, and its networks in NumPy where it has them."""

    model: AnyActorCritic
    networks: NumpyActorCritic | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def values(self, observations: np.ndarray) -> np.ndarray:
        """(n,) from (n, obs_dim)."""
        if self.networks:
            return self.networks.values(observations)
        values: np.ndarray = self.model.value(torch.from_numpy(observations).to(self.device)).cpu().numpy()
        return values

    @torch.no_grad()
    def score(self, observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs (n,) of actions, and values (n,)."""
        if self.networks:
            return self.networks.score(observations, actions)
        on_device = (torch.from_numpy(x).to(self.device) for x in (observations, actions))
        log_probs, values, _ = self.model.evaluate(*on_device)
        return log_probs.cpu().numpy(), values.cpu().numpy()


class Randomness(Protocol):
    """Where a collector's random draws come from: a ``Run``, or a part of one."""

    def generator(self, purpose: str, *counters: int, device: str = "cpu") -> torch.Generator: ...


class StepCollector:
    """``n_steps`` of all environments at a time, into one buffer."""

    def __init__(
        self, run: Randomness, actor: StepActor, vectors: Vectors, normalizer: Normalizer, buffer: RolloutBuffer
    ) -> None:
        self.run, self.actor, self.vectors, self.normalizer, self.buffer = run, actor, vectors, normalizer, buffer
        self.running_returns = np.zeros(buffer.n_envs)
        self.recent_returns: deque[float] = deque(maxlen=100)
        self.episodes = 0
        self.observations = normalizer.observations(vectors.observations)

    @torch.no_grad()
    def collect(self, iteration: int) -> StepRollout:
        """One rollout.  Autoreset steps, which take no action, are marked as not valid.

        The loop makes few calls: on small tasks they dominate the time of a step.
        """
        buffer, normalizer, step = self.buffer, self.normalizer, self.vectors.step
        shape = (buffer.n_steps, buffer.n_envs)
        rows, act = buffer.begin(), self._policy_of(iteration)
        observations, actions = rows["observations"], rows["actions"]
        rewards, (terminated, truncated, valid) = np.empty(shape), np.empty((3, *shape), dtype=bool)
        cuts: list[tuple[int, np.ndarray, np.ndarray]] = []
        reference: list[np.ndarray] = []
        for t in range(buffer.n_steps):
            observation = observations[t] = self.observations
            action = actions[t] = act(t, observation)
            stepped: Stepped = step(action)
            rewards[t], terminated[t], truncated[t], valid[t] = stepped[:4]
            if np.count_nonzero(stepped.truncated):
                cut = truncated[t] & ~terminated[t]
                cuts.append((t, cut, normalizer.observations(stepped.final[cut], learn=False)))
            if stepped.ref_logprobs is not None:
                reference.append(stepped.ref_logprobs)
            self.observations = normalizer.observations(self.vectors.observations, ~self.vectors.waiting)
        ended = terminated | truncated
        np.logical_or(ended, ~valid, out=rows["dones"])
        for t in range(buffer.n_steps):
            rows["rewards"][t] = normalizer.rewards(rewards[t], ended[t], valid[t])
        rows["bootstraps"][:] = 0.0
        for t, cut, final in cuts:  # a time limit is not part of the task: bootstrap from the value function
            rows["bootstraps"][t, cut] = self.actor.values(final)
        if networks := self.actor.networks:
            flat = (
                rows[name].reshape(shape[0] * shape[1], *rows[name].shape[2:]) for name in ("observations", "actions")
            )
            for name, found in zip(("log_probs", "values"), networks.score(*flat), strict=True):
                rows[name][:] = found.reshape(shape)
        buffer.end()
        returns = self._episode_returns(rewards * valid, ended)
        return StepRollout(
            buffer,
            self.actor.values(self.observations),
            None if valid.all() else valid.reshape(-1),
            np.stack(reference) if reference else None,
            returns,
            tuple(self.recent_returns),
            self.episodes,
            (iteration + 1) * shape[0] * shape[1],
            self.observations,
            tuple(cuts),
        )

    def _policy_of(self, iteration: int) -> Callable[[int, np.ndarray], np.ndarray]:
        """The function that acts at step t of a rollout.  In NumPy, log-probs and values are computed after the rollout."""
        actor, buffer = self.actor, self.buffer
        generator = self.run.generator("actions", iteration, device=str(actor.device))
        if networks := actor.networks:
            noise = networks.sampling_noise((buffer.n_steps, buffer.n_envs), generator)
            return lambda t, observations: networks.sample(observations, noise[t])

        def act(t: int, observations: np.ndarray) -> np.ndarray:
            on_device = torch.from_numpy(observations).to(actor.device)
            action, log_prob, value = actor.model.get_action_and_value(on_device, generator=generator)
            buffer.log_probs[t], buffer.values[t] = log_prob.cpu(), value.cpu()
            actions: np.ndarray = action.cpu().numpy()
            return actions

        return act

    def _episode_returns(self, rewards: np.ndarray, ended: np.ndarray) -> tuple[float, ...]:
        """The sums of the task's own rewards of the episodes that ended, from (n_steps, n_envs) each."""
        returns: list[float] = []
        any_ended = [bool(row.any()) for row in ended]
        for t, step_rewards in enumerate(rewards):
            self.running_returns += step_rewards
            if any_ended[t]:
                returns += self.running_returns[ended[t]].tolist()
                self.running_returns[ended[t]] = 0.0
        self.recent_returns.extend(returns)
        self.episodes += len(returns)
        return tuple(returns)

    def state_dict(self) -> dict[str, Any]:
        return {
            "vectors": self.vectors.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "running_returns": torch.tensor(self.running_returns),
            "recent_returns": list(self.recent_returns),
            "episodes": self.episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vectors.load_state_dict(state["vectors"])
        self.normalizer.load_state_dict(state["normalizer"])
        self.observations = self.normalizer.observations(self.vectors.observations, learn=False)
        self.running_returns, self.episodes = state["running_returns"].numpy().copy(), int(state["episodes"])
        self.recent_returns = deque(state["recent_returns"], maxlen=100)
