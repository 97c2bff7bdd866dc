"""Gymnasium's spaces as vectors: observations flattened to numbers, actions mapped from the policy's to the task's.

Discrete parts of an observation become one-hot vectors; mappings and tuples are flattened in Gymnasium's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from accord.errors import UserError

MAX_NUMBERS = 10_000
"""Numbers of a flattened observation; larger ones are images or tables that these networks cannot learn from."""
MAX_VECTOR = 1_000_000
"""Numbers of an observation that is a vector already, and outputs of a policy; the networks have a column or row for each."""
NEAR = (0.25, 4.0)
"""Half-widths of action bounds that a policy of standard deviation 1 around 0 reaches; others are scaled to [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Spaces:
    """Observations are vectors of ``obs_dim``; actions one of ``action_dim``, vectors of that length, or several choices."""

    obs_dim: int
    action_dim: int  # of several choices: the sum of their sizes
    continuous: bool = False
    start: int | np.ndarray = 0  # the number of the first discrete action
    low: np.ndarray | None = None  # (action_dim,) bounds of continuous actions
    high: np.ndarray | None = None
    sizes: tuple[int, ...] = ()  # where an action is several discrete choices, of how many each
    scale: np.ndarray | None = None  # (action_dim,) the task's units per unit of the policy; None: the same
    offset: np.ndarray | None = None  # (action_dim,) the task's action where the policy's is 0
    action_shape: tuple[int, ...] | None = None  # of the task's actions, where they are no vectors
    notes: tuple[str, ...] = ()  # what a user should know of the mapping

    @property
    def action_length(self) -> int:
        """Numbers of an action that is a vector; 0 where it is one integer."""
        return self.action_dim if self.continuous else len(self.sizes)

    def to_task(self, actions: np.ndarray) -> np.ndarray:
        """The task's actions from the policy's (n, …): counted from ``start``, or scaled and clipped to the bounds."""
        if self.continuous:
            if self.scale is not None and self.offset is not None:
                with np.errstate(over="ignore"):  # beyond the bounds, to which it is clipped
                    actions = actions * self.scale + self.offset
            actions = np.clip(actions, self.low, self.high)
        elif self.start if isinstance(self.start, int) else self.start.any():
            actions = actions + self.start
        return actions if self.action_shape is None else actions.reshape(len(actions), *self.action_shape)

    def words(self) -> str:
        """The spaces in a line of the plan."""
        if self.sizes:
            kind = f"{len(self.sizes)} choices among {' x '.join(map(str, self.sizes))}"
        else:
            kind = f"vectors of {self.action_dim} reals" if self.continuous else f"{self.action_dim} actions"
        return f"observations of {self.obs_dim} numbers, {kind}"


def spaces_of(name: str, observations: Any, actions: Any) -> Spaces:
    """A task's spaces as ``Spaces``.  Raises UserError for spaces that no policy here can use."""
    found = _spaces(name, observations, actions)
    if found.action_dim > MAX_VECTOR:
        raise UserError(
            f"environment: {name!r} takes {_line(actions)}: {found.action_dim} outputs of a policy, and at most {MAX_VECTOR}"
            " are supported; give it fewer actions."
        )
    return found


def _spaces(name: str, observations: Any, actions: Any) -> Spaces:
    from gymnasium import spaces

    obs_dim, notes = _observation_size(name, observations)
    if isinstance(actions, spaces.Discrete):
        return Spaces(obs_dim, int(actions.n), start=int(actions.start), notes=notes)
    if isinstance(actions, spaces.MultiDiscrete) and actions.nvec.size:
        sizes, start = tuple(map(int, actions.nvec.reshape(-1))), np.asarray(actions.start).reshape(-1)
        return Spaces(obs_dim, sum(sizes), False, start, sizes=sizes, action_shape=_shape(actions), notes=notes)
    if isinstance(actions, spaces.MultiBinary) and np.prod(actions.shape):
        sizes = (2,) * int(np.prod(actions.shape))
        return Spaces(obs_dim, sum(sizes), sizes=sizes, action_shape=_shape(actions), notes=notes)
    if isinstance(actions, spaces.Box) and np.prod(actions.shape) and np.issubdtype(actions.dtype, np.floating):
        return _continuous(name, obs_dim, actions, notes)
    remedy = "; make it MultiDiscrete" if isinstance(actions, spaces.Box) and np.prod(actions.shape) else ""
    raise UserError(
        f"environment: {name!r} takes {_line(actions)}, needed is a Discrete, MultiDiscrete or MultiBinary space, or a"
        f" Box of real numbers{remedy}."
    )


def _shape(actions: Any) -> tuple[int, ...] | None:
    return None if len(actions.shape) == 1 else tuple(actions.shape)


def _continuous(name: str, obs_dim: int, actions: Any, notes: tuple[str, ...]) -> Spaces:
    """Real-valued actions.  Components with bounds that a policy around 0 does not reach are scaled to [-1, 1]."""
    low, high = actions.low.reshape(-1), actions.high.reshape(-1)
    if not np.all(low <= high) or np.isposinf(low).any() or np.isneginf(high).any():
        raise UserError(
            f"environment: {name!r} takes {_line(actions)}, whose lower bounds are not below the upper ones."
        )
    bounded = np.isfinite(low) & np.isfinite(high)
    least, most = np.where(bounded, low, -1), np.where(bounded, high, 1)
    middle = np.where(bounded, least / 2 + most / 2, np.clip(np.zeros_like(low), low, high))
    half = most / 2 - least / 2
    near = np.where(bounded, (half >= NEAR[0]) & (half <= NEAR[1]) & (np.abs(middle) <= half), middle == 0)
    scale = offset = None
    if not near.all():
        largest = np.finfo(np.float32).max
        scale = np.where(near, 1, half).clip(max=largest).astype(np.float32)
        offset = np.where(near, 0, middle).clip(-largest, largest).astype(np.float32)
        notes += (
            f"{int((~near).sum())} of {near.size} components of an action have bounds far from [-1, 1]: the policy acts in"
            f" units in which they are [-1, 1], and {name} gets them scaled",
        )
    sizes = (obs_dim, int(low.size), True, 0, low, high)
    return Spaces(*sizes, scale=scale, offset=offset, action_shape=_shape(actions), notes=notes)


# ------------------------------------------------------------------ observations
def _observation_size(name: str, space: Any) -> tuple[int, tuple[str, ...]]:
    """The length of a flattened observation, and notes."""
    from gymnasium import spaces

    if other := _not_flat(space):
        raise UserError(
            f"environment: {name!r} shows {other}, needed are numbers: a Box, Discrete, MultiDiscrete or MultiBinary space,"
            " or a Dict or Tuple of these."
        )
    size = int(spaces.utils.flatdim(space))
    if not size:
        raise UserError(f"environment: {name!r} shows {_line(space)}, which has no numbers to learn from.")
    if is_vector(space):
        if size > MAX_VECTOR:
            raise UserError(
                f"environment: {name!r} shows {_line(space)}, {size} numbers, and at most {MAX_VECTOR} are supported; give"
                " it smaller observations, such as features."
            )
        return size, ()
    if size > MAX_NUMBERS:
        raise UserError(
            f"environment: {name!r} shows {_line(space)}, {size} numbers, and at most {MAX_NUMBERS} are flattened (there are"
            " no convolutions here); give it smaller observations, such as features."
        )
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        shape = " x ".join(map(str, space.shape))
        return size, (f"observations of {shape} are flattened to {size} numbers; there are no convolutions here",)
    return size, ()


def is_vector(space: Any) -> bool:
    """Whether a space's observations are vectors of numbers already."""
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _not_flat(space: Any) -> str:
    """The first part of a space that has no fixed number of numbers, in words; empty where there is none."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return next(filter(None, map(_not_flat, space.spaces.values())), "")
    if isinstance(space, spaces.Tuple):
        return next(filter(None, map(_not_flat, space.spaces)), "")
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return ""
    return _line(space)


def _line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def flattener(space: Any) -> Callable[[Any], np.ndarray]:
    """A function from a space's observations to vectors of numbers.  It raises ValueError, saying what is wrong."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):

        def flat_box(observation: Any) -> np.ndarray:
            return _numbers(observation, space.shape, "an observation").reshape(-1)

        return flat_box

    def flat(observation: Any) -> np.ndarray:
        _check(space, observation, "an observation")
        found: np.ndarray = np.asarray(spaces.flatten(space, observation))
        return found

    return flat


def _numbers(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else _array(value, what)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what} that holds {_kind(value)}, expected numbers")
    if array.shape != shape:
        raise ValueError(f"{what} of shape {array.shape}, expected {shape}")
    return array


def _array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, or tensors on another device
        raise ValueError(f"{what} that is {_kind(value)}, expected an array of numbers") from None


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) and value.dtype != object else type(value).__name__


def _check(space: Any, value: Any, what: str) -> None:
    """Raises ValueError where a value is not one of the space, apart from a Box's bounds."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            found = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else _kind(value)
            raise ValueError(f"{what} with {found}, expected the keys {', '.join(map(str, space.spaces))}")
        for key, inner in space.spaces.items():
            _check(inner, value[key], f"{what} whose {key!r} is a value")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            found = f"{len(value)} parts" if isinstance(value, (tuple, list)) else _kind(value)
            raise ValueError(f"{what} with {found}, expected {len(space.spaces)} parts")
        for i, (inner, part) in enumerate(zip(space.spaces, value, strict=True)):
            _check(inner, part, f"{what} whose part {i} is a value")
    elif isinstance(space, spaces.Box):
        _numbers(value, space.shape, what)
    else:
        _check_choices(space, value, what)


def _check_choices(space: Any, value: Any, what: str) -> None:
    from gymnasium import spaces

    array = _numbers(value, space.shape, what)
    first: Any = 0 if isinstance(space, spaces.MultiBinary) else space.start
    if isinstance(space, spaces.MultiBinary):
        count: Any = 2
    else:
        count = space.n if isinstance(space, spaces.Discrete) else space.nvec
    if array.dtype.kind == "f" or not np.all((array >= first) & (array - first < count)):
        raise ValueError(f"{what} {_line(value)}, which is not one of {_line(space)}")
