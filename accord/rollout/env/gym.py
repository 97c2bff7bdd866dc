"""Gymnasium tasks side by side, stepped in one call, and resumed bit-exactly.

Gymnasium's vector environments reset themselves, each kind at another step (``AutoresetMode``):
  * ``EpisodeVectors`` does without them and resets with a seed for each episode, so that an episode can be replayed
    from its seed; this is exact for every task that is a function of seed and actions;
  * ``ArrayVectors`` is for tasks with a vectorized implementation of their own (``vector_entry_point``) whose state
    is plain arrays: these and the state of its generator are saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from accord.config.functions import load_function
from accord.errors import UserError
from accord.rollout.env.episodes import EpisodeVectors, SeedOf, Spaces, Stepped, Vectors

_NEEDS = "model.policy=control needs Gymnasium (1.1 or later): pip install 'accord[control]'."


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
    """A task's spaces as ``Spaces``.  Raises UserError for spaces that no policy here can use."""
    kinds = _gymnasium().spaces
    if not isinstance(observations, kinds.Box) or len(observations.shape) != 1:
        raise UserError(f"environment: {name!r} shows {observations}, needed is a vector (a Box of one dimension).")
    obs_dim = int(observations.shape[0])
    if isinstance(actions, kinds.Discrete):
        return Spaces(obs_dim, int(actions.n), start=int(actions.start))
    if isinstance(actions, kinds.Box) and len(actions.shape) == 1 and np.issubdtype(actions.dtype, np.floating):
        return Spaces(obs_dim, int(actions.shape[0]), True, 0, actions.low, actions.high)
    raise UserError(f"environment: {name!r} takes {actions}, needed is a Discrete space or a Box of one dimension.")


def open_vectors(name: str, n: int, seed_of: SeedOf) -> Vectors:
    """``n`` environments of a Gymnasium id or a ``module:Class``, each at the start of its first episode.

    Raises UserError where Gymnasium is absent, the name unknown, or its spaces are such that no policy here can use them.
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
    environments = [make_environment(name) for _ in range(n)]
    spaces = spaces_of(name, environments[0].observation_space, environments[0].action_space)
    return EpisodeVectors(environments, spaces, seed_of)


def _as_arrays(name: str, vector: Any, seed_of: SeedOf) -> ArrayVectors | None:
    """None where the state is not plain arrays, or resets are left to the caller."""
    modes = _gymnasium().vector.AutoresetMode
    found = ArrayVectors(name, vector, seed_of)
    if found.mode in (modes.NEXT_STEP, modes.SAME_STEP) and found.can_be_saved():
        return found
    vector.close()
    return None


class ArrayVectors:
    """A task's own vectorized implementation.

    With autoreset at the next step, the step after an episode's end takes no action and is marked as not valid.
    """

    def __init__(self, name: str, vector: Any, seed_of: SeedOf) -> None:
        self.vector, self.inner = vector, vector.unwrapped
        self.spaces = spaces_of(name, vector.single_observation_space, vector.single_action_space)
        self.mode = vector.metadata.get("autoreset_mode")
        self.within_step = self.mode == _gymnasium().vector.AutoresetMode.SAME_STEP
        self.waiting = np.zeros(vector.num_envs, dtype=bool)
        self.observations = np.array(vector.reset(seed=seed_of(0, 0) % 2**31)[0], dtype=np.float32, order="C")

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.inner).items() if isinstance(value, _PLAIN)}

    def can_be_saved(self) -> bool:
        """Whether nothing but arrays and numbers can change in a step."""
        gymnasium = _gymnasium()
        fixed = (*_PLAIN, type(None), str, gymnasium.Space, gymnasium.envs.registration.EnvSpec, np.random.Generator)
        return vars(self.inner).keys() >= {"_np_random"} and all(
            isinstance(value, fixed) for key, value in vars(self.inner).items() if key != "metadata"
        )

    def step(self, actions: np.ndarray) -> Stepped:
        """Acts in each; ``observations`` are the final ones where an episode has ended at the end of this step."""
        observations, rewards, terminated, truncated, info = self.vector.step(self.spaces.to_task(actions))
        final = np.array(observations, dtype=np.float32, order="C")  # as after a resume: torch rounds by the layout
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
