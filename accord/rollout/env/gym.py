"""Gymnasium tasks side by side, stepped in one call, and resumable bit for bit.

Gymnasium's vector environments begin an episode anew by themselves, each kind at another moment (``AutoresetMode``):
  * ``EpisodeVectors`` does without them and resets with a seed for each episode, so that an episode can be had again
    by acting it again from its seed; this serves every task that is a function of seed and actions;
  * ``ArrayVectors`` is for tasks that bring an implementation of their own for many at once (``vector_entry_point``)
    whose state is plain arrays: these and the state of its generator are saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from accord.config.load import load_function
from accord.errors import UserError

SeedOf = Callable[[int, int], int]
"""(environment, episode) to a seed."""
_NEEDS = "model.policy=control needs Gymnasium (1.1 or later): pip install 'accord[gym]'."


@dataclass(frozen=True, slots=True)
class Spaces:
    """What is seen, a vector, and what may be done: one of ``action_dim`` actions, or a vector of that length."""

    obs_dim: int
    action_dim: int
    continuous: bool
    start: int  # the number of the first discrete action
    low: np.ndarray  # (action_dim,) bounds of continuous ones
    high: np.ndarray

    def acted(self, actions: np.ndarray) -> np.ndarray:
        """What the task is given: the policy's actions, counted from ``start``, or clipped to the bounds."""
        if self.continuous:
            clipped: np.ndarray = np.clip(actions, self.low, self.high)
            return clipped
        return actions + self.start if self.start else actions


class Stepped(NamedTuple):
    """One step of ``n`` environments."""

    rewards: np.ndarray  # (n,) float64
    terminated: np.ndarray  # (n,) bool: the episode is over
    truncated: np.ndarray  # (n,) bool: the episode was cut
    valid: np.ndarray  # (n,) bool: false where the action was not taken (``waiting`` before the step)
    final: np.ndarray  # (n, obs_dim) float32: where the step led to, before any reset


class GymVectors(Protocol):
    """Several environments side by side."""

    spaces: Spaces
    observations: np.ndarray
    """(n, obs_dim) float32: what the next action is chosen by."""
    waiting: np.ndarray
    """(n,) bool: where the next action will not be taken, since that step only begins an episode."""

    def step(self, actions: np.ndarray) -> Stepped: ...

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError(_NEEDS) from None
    if not hasattr(gymnasium.vector, "AutoresetMode"):
        raise UserError(f"{_NEEDS[:-1]}; found is {gymnasium.__version__}.")
    return gymnasium


def _own_class(name: str) -> Callable[..., Any] | None:
    """The class that ``module:Class`` names; None for an id of Gymnasium's, whose ``module:Task-v0`` has a dash."""
    if ":" not in name or not name.rpartition(":")[2].isidentifier():
        return None
    found = load_function(name, "environment")
    if not (isinstance(found, type) and issubclass(found, _gymnasium().Env)):
        raise UserError(f"environment: {name!r} is no subclass of gymnasium.Env.")
    return found


def make_environment(name: str, render_mode: str | None = None) -> Any:
    """One environment by a Gymnasium id or ``module:Class``.  Raises UserError where it cannot be made."""
    gymnasium, own = _gymnasium(), _own_class(name)
    arguments = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return own(**arguments) if own else gymnasium.make(name, **arguments, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"environment: {name!r} cannot be made ({error}).") from None


def spaces_of(name: str, observations: Any, actions: Any) -> Spaces:
    """What a policy needs to know of a task's spaces.  Raises UserError for spaces of another kind."""
    kinds = _gymnasium().spaces
    if not isinstance(observations, kinds.Box) or len(observations.shape) != 1:
        raise UserError(f"environment: {name!r} shows {observations}, needed is a vector (a Box of one dimension).")
    obs_dim, none = int(observations.shape[0]), np.zeros(0, dtype=np.float32)
    if isinstance(actions, kinds.Discrete):
        return Spaces(obs_dim, int(actions.n), False, int(actions.start), none, none)
    if isinstance(actions, kinds.Box) and len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating):
        return Spaces(obs_dim, int(actions.shape[0]), True, 0, actions.low, actions.high)
    raise UserError(f"environment: {name!r} takes {actions}, needed is a Discrete space or a Box of one dimension.")


def open_vectors(name: str, n: int, seed_of: SeedOf) -> GymVectors:
    """``n`` environments of a Gymnasium id or a ``module:Class``, each at the start of its first episode.

    Raises UserError where Gymnasium is absent, the name unknown, or the spaces of a kind that no policy here serves.
    """
    gymnasium = _gymnasium()
    try:
        spec = None if _own_class(name) else gymnasium.spec(name)
        if spec and spec.vector_entry_point is not None and not spec.additional_wrappers:
            arrays = _as_arrays(name, gymnasium.make_vec(name, n, "vector_entry_point"), seed_of)
            if arrays is not None:
                return arrays
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"environment: {name!r} cannot be made ({error}).") from None
    return EpisodeVectors(name, [make_environment(name) for _ in range(n)], seed_of)


class EpisodeVectors:
    """Environments of one kind; where an episode ends, the next begins within the step, from its seed.

    ``gymnasium.vector.SyncVectorEnv`` would take several times as long for a step as a quick task.
    The state is the number of each one's episode and its actions since; loading acts them again.
    """

    def __init__(self, name: str, environments: Sequence[Any], seed_of: SeedOf) -> None:
        self.environments, self.seed_of = environments, seed_of
        n = len(environments)
        self.spaces = spaces_of(name, environments[0].observation_space, environments[0].action_space)
        self.episodes = [0] * n
        self.starts = [0] * n  # where in actions each one's episode begins
        self.actions: list[np.ndarray] = []
        self.waiting, self.valid = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        self.observations = self._begun(np.empty((n, self.spaces.obs_dim), dtype=np.float32), range(n))

    def _begun(self, observations: np.ndarray, which: Iterable[int]) -> np.ndarray:
        """The same array (n, obs_dim) with the first observations of new episodes where ``which`` says."""
        for i in which:
            seed = self.seed_of(i, self.episodes[i]) % 2**31
            observations[i], _ = self.environments[i].reset(seed=seed, options={})
        return observations

    def step(self, actions: np.ndarray) -> Stepped:
        """Acts in each; ``observations`` are the next episode's first ones where one has ended."""
        acted, n, over = self.spaces.acted(actions), len(self.environments), []
        final, rewards = np.empty((n, self.spaces.obs_dim), dtype=np.float32), np.empty(n)
        terminated, truncated = np.empty(n, dtype=bool), np.empty(n, dtype=bool)
        for i, environment in enumerate(self.environments):
            final[i], rewards[i], ended, cut, _ = environment.step(acted[i])
            terminated[i], truncated[i] = ended, cut
            if ended or cut:
                over.append(i)
        self.actions.append(acted)
        self.observations = final
        if over:
            for i in over:
                self.episodes[i] += 1
                self.starts[i] = len(self.actions)
            self.observations = self._begun(final.copy(), over)
            oldest = min(self.starts)
            if oldest > 1000:  # what lies before every present episode is not needed again
                del self.actions[:oldest]
                self.starts = [start - oldest for start in self.starts]
        return Stepped(rewards, terminated, truncated, self.valid, final)

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
        self.observations = self._begun(np.empty_like(self.observations), range(len(self.episodes)))
        for i, environment in enumerate(self.environments):
            for action in self.actions[self.starts[i] :]:
                self.observations[i] = environment.step(action[i])[0]


def _as_arrays(name: str, vector: Any, seed_of: SeedOf) -> ArrayVectors | None:
    """None where the state is not plain arrays, or resets are left to the caller."""
    modes = _gymnasium().vector.AutoresetMode
    found = ArrayVectors(name, vector, seed_of)
    if found.mode in (modes.NEXT_STEP, modes.SAME_STEP) and found.plain():
        return found
    vector.close()
    return None


class ArrayVectors:
    """A task's own implementation for many at once.

    With autoreset at the next step, the step after an episode's end takes no action and is marked as not valid.
    """

    def __init__(self, name: str, vector: Any, seed_of: SeedOf) -> None:
        self.vector, self.inner = vector, vector.unwrapped
        self.spaces = spaces_of(name, vector.single_observation_space, vector.single_action_space)
        self.mode = vector.metadata.get("autoreset_mode")
        self.within_step = self.mode == _gymnasium().vector.AutoresetMode.SAME_STEP
        self.waiting = np.zeros(vector.num_envs, dtype=bool)
        self.observations = np.array(vector.reset(seed=seed_of(0, 0) % 2**31)[0], dtype=np.float32)

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.inner).items() if isinstance(value, _PLAIN)}

    def plain(self) -> bool:
        """Whether nothing but arrays and numbers can change in a step."""
        gymnasium = _gymnasium()
        fixed = (*_PLAIN, type(None), str, gymnasium.Space, gymnasium.envs.registration.EnvSpec, np.random.Generator)
        return vars(self.inner).keys() >= {"_np_random"} and all(
            isinstance(value, fixed) for key, value in vars(self.inner).items() if key != "metadata"
        )

    def step(self, actions: np.ndarray) -> Stepped:
        """Acts in each; ``observations`` are the final ones where an episode has ended at the end of this step."""
        seen, rewards, terminated, truncated, info = self.vector.step(self.spaces.acted(actions))
        final = np.array(seen, dtype=np.float32)
        self.observations, ended = final, terminated | truncated
        valid = ~self.waiting
        if not self.within_step:
            self.waiting = ended
        elif ended.any():
            final = final.copy()
            final[ended] = np.stack(info["final_obs"][ended])
        return Stepped(rewards, terminated, truncated, valid, final)

    def close(self) -> None:
        self.vector.close()

    def state_dict(self) -> dict[str, Any]:
        attributes = self._attributes()
        arrays = {k: torch.tensor(v) for k, v in attributes.items() if isinstance(v, np.ndarray)}
        numbers = {k: v.item() if isinstance(v, np.generic) else v for k, v in attributes.items() if k not in arrays}
        return {
            "arrays": arrays,
            "numbers": numbers,
            "generator": json.dumps(self.inner.np_random.bit_generator.state),  # its integers have 128 bits
            "waiting": torch.tensor(self.waiting),
            "observations": torch.tensor(self.observations),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, array in state["arrays"].items():
            setattr(self.inner, name, array.numpy().copy())
        for name, number in state["numbers"].items():
            setattr(self.inner, name, number)
        self.inner.np_random.bit_generator.state = json.loads(state["generator"])
        self.waiting, self.observations = (state[k].numpy().copy() for k in ("waiting", "observations"))


_PLAIN = (np.ndarray, np.generic, bool, int, float)
