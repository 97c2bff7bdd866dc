"""Gymnasium tasks side by side, stepped in one call, and resumed bit-exactly.

Gymnasium's vector environments reset themselves, each kind at another step (``AutoresetMode``):
  * ``EpisodeVectors`` does without them and resets with a seed for each episode, so that an episode can be replayed
    from its seed; this is exact for every task that is a function of seed and actions;
  * ``ArrayVectors`` is for tasks with a vectorized implementation of their own (``vector_entry_point``) whose state
    is plain arrays: these and the state of its generator are saved.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from accord.config.functions import load_function
from accord.errors import UserError
from accord.io.installation import install_command
from accord.rollout.env.checked import CheckedEnvironment, all_finite, raised_in_words
from accord.rollout.env.episodes import EpisodeVectors, SeedOf, Stepped, Vectors
from accord.rollout.env.spaces import is_vector, spaces_of

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


def _needs() -> str:
    return f"model.policy=control needs Gymnasium (1.1 or later): {install_command('control')}"


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError(f"{_needs()}.") from None
    if not hasattr(gymnasium.vector, "AutoresetMode"):
        raise UserError(f"{_needs()}; found is {gymnasium.__version__}.")
    return gymnasium


def _own_class(name: str) -> Callable[..., Any] | None:
    """The class that ``module:Class`` names; None for an id of Gymnasium's, whose ``module:Task-v0`` has a dash."""
    if ":" not in name or not name.rpartition(":")[2].isidentifier():
        return None
    found = load_function(name, "environment")
    if not (isinstance(found, type) and issubclass(found, _gymnasium().Env)):
        raise UserError(f"environment: {name!r} is no subclass of gymnasium.Env.")
    return found


def make_environment(
    name: str, arguments: Mapping[str, Any] = NO_ARGUMENTS, number: int = 0, render_mode: str | None = None
) -> CheckedEnvironment:
    """One environment by a Gymnasium id or ``module:Class``, with its arguments; ``number`` names it in messages.

    Raises UserError where it cannot be made, or its spaces are such that no policy here can use them.
    """
    gymnasium, own = _gymnasium(), _own_class(name)
    given = {**arguments, **({} if render_mode is None else {"render_mode": render_mode})}
    try:
        made = own(**given) if own else gymnasium.make(name, **{"disable_env_checker": True, **given})
    except (Exception, SystemExit) as error:  # any code of a user
        raise _not_made(name, error) from error
    return CheckedEnvironment(made, name, number)


def _not_made(name: str, error: BaseException) -> UserError:
    """What Gymnasium or the environment's own code says, and the fix where it is known."""
    known = isinstance(error, (_gymnasium().error.Error, ImportError))
    words = " ".join(str(error).split()).rstrip(".") if known else raised_in_words(error)
    remedy = "; give its arguments in environment_args." if re.search(r"missing \d+ required .*argument", words) else ""
    if "unexpected keyword argument" in words:
        remedy = "; correct environment_args."
    registered = [*_gymnasium().registry]
    if isinstance(error, _gymnasium().error.Error) and name not in registered and "`" not in words:
        near = difflib.get_close_matches(name, registered, 1)
        remedy = f"; did you mean {near[0]!r}?" if near else remedy
    return UserError(f"environment: {name!r} cannot be made ({words}){remedy or '.'}")


def open_vectors(name: str, n: int, seed_of: SeedOf, arguments: Mapping[str, Any] = NO_ARGUMENTS) -> Vectors:
    """``n`` environments of a Gymnasium id or a ``module:Class``, each at the start of its first episode.

    Raises UserError where Gymnasium is absent, the name unknown, or its spaces are such that no policy here can use them.
    """
    gymnasium = _gymnasium()
    try:
        spec = None if arguments or _own_class(name) else gymnasium.spec(name)
        if spec and spec.vector_entry_point is not None and not spec.additional_wrappers:
            arrays = _as_arrays(name, gymnasium.make_vec(name, n, "vector_entry_point"), seed_of)
            if arrays is not None:
                return arrays
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any code of a user
        raise _not_made(name, error) from error
    environments = [make_environment(name, arguments, i) for i in range(n)]
    return EpisodeVectors(environments, environments[0].spaces, seed_of)


def _as_arrays(name: str, vector: Any, seed_of: SeedOf) -> ArrayVectors | None:
    """None where observations are no vectors, the state is not plain arrays, or resets are left to the caller."""
    gymnasium, space = _gymnasium(), vector.single_observation_space
    modes = (gymnasium.vector.AutoresetMode.NEXT_STEP, gymnasium.vector.AutoresetMode.SAME_STEP)
    if is_vector(space):
        found = ArrayVectors(name, vector, seed_of)
        if found.mode in modes and found.can_be_saved():
            return found
    vector.close()
    return None


class ArrayVectors:
    """A task's own vectorized implementation.

    With autoreset at the next step, the step after an episode's end takes no action and is marked as not valid.
    ``step`` raises UserError, naming environment, episode and step, where it raises or a number is not finite.
    """

    def __init__(self, name: str, vector: Any, seed_of: SeedOf) -> None:
        self.name, self.vector, self.inner = name, vector, vector.unwrapped
        self.spaces = spaces_of(name, vector.single_observation_space, vector.single_action_space)
        self.mode = vector.metadata.get("autoreset_mode")
        self.within_step = self.mode == _gymnasium().vector.AutoresetMode.SAME_STEP
        self.waiting = np.zeros(vector.num_envs, dtype=bool)
        self.seed = seed_of(0, 0) % 2**31
        self.steps, self.episodes, self.starts = 0, [0] * vector.num_envs, [0] * vector.num_envs
        self.observations = np.array(vector.reset(seed=self.seed)[0], dtype=np.float32, order="C")
        self._require_finite(observation=self.observations)

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
        self.steps += 1
        try:
            observations, rewards, terminated, truncated, info = self.vector.step(self.spaces.to_task(actions))
        except (Exception, SystemExit) as error:  # any code of a user
            raise UserError(f"environment: {self.name!r}: step() raised {raised_in_words(error)}.") from error
        final = np.array(observations, dtype=np.float32, order="C")  # as after a resume: torch rounds by the layout
        self.observations, ended = final, terminated | truncated
        valid = ~self.waiting
        if not (all_finite(final.reshape(-1)) and all_finite(rewards)):
            self._require_finite(observation=final, reward=rewards)
        for i in np.flatnonzero(ended).tolist() if np.count_nonzero(ended) else ():
            self.episodes[i] += 1
            self.starts[i] = self.steps + (not self.within_step)  # the next step takes no action
        if not self.within_step:
            self.waiting = ended
        elif ended.any():
            final = final.copy()
            final[ended] = np.stack(info["final_obs"][ended])
        return Stepped(rewards, terminated, truncated, valid, final)

    def _require_finite(self, **numbers: np.ndarray) -> None:
        """Raises UserError for the first environment in which one of the named arrays (n, …) is not finite."""
        for name, array in numbers.items():
            if not np.isfinite(array).all():
                i = int(np.argwhere(~np.isfinite(array))[0][0])
                raise UserError(
                    f"environment: {self.name!r} (number {i}, episode {self.episodes[i]}, seed {self.seed} of all, step"
                    f" {self.steps - self.starts[i]}): the {name} is {array[i]}, expected finite numbers."
                )

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
            "place": [self.steps, *self.episodes, *self.starts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, array in state["arrays"].items():
            setattr(self.inner, name, array.numpy().copy())
        for name, number in state["numbers"].items():
            setattr(self.inner, name, number)
        self.inner.np_random.bit_generator.state = json.loads(state["generator"])
        self.waiting, self.observations = (state[k].numpy().copy() for k in ("waiting", "observations"))
        if place := state.get("place"):  # absent in states of earlier versions
            n = len(self.episodes)
            self.steps, self.episodes, self.starts = place[0], list(place[1 : n + 1]), list(place[n + 1 :])


_PLAIN = (np.ndarray, np.generic, bool, int, float)
