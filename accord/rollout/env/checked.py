"""A Gymnasium environment whose values are checked where they enter: what is wrong is named with its place."""

from __future__ import annotations

import contextlib
import math
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from accord.config.functions import LARGEST_SCORE
from accord.errors import UserError
from accord.rollout.env.spaces import flattener, is_vector, spaces_of

_FLAGS = (bool, np.bool_)
_ACCORD = Path(__file__).parents[2]
Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]
_SIGNATURE = "define it as reset(self, *, seed=None, options=None)"
_STEP = "return observation, reward, terminated, truncated, info"


def raised_in_words(error: BaseException) -> str:
    """An exception of a user's code: its type, its first line, and the last line of theirs on the way to it."""
    first = (str(error).strip().splitlines() or [""])[0]
    frames = [
        Path(frame.filename).name + f" line {frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and _ACCORD not in Path(frame.filename).parents
    ]
    return f"{type(error).__name__}{': ' * bool(first)}{first}" + (f" at {frames[-1]}" if frames else "")


def all_finite(vector: np.ndarray) -> bool:
    """Whether all numbers of a vector are finite: by its square first (``vdot`` warns of no overflow), which is faster."""
    return math.isfinite(np.vdot(vector, vector)) or bool(np.isfinite(vector).all())


class CheckedEnvironment:
    """One environment; its observations become float32 vectors, its rewards finite numbers.

    ``reset`` and ``step`` raise UserError naming the environment, its number, episode, seed and step: where they raise,
    where they do not return what Gymnasium's interface says, and where a number is not finite.
    """

    def __init__(self, environment: Any, name: str, number: int = 0) -> None:
        """``number``: which of several environments this is, for messages."""
        self.environment, self.name, self.number = environment, name, number
        spaces: list[Any] = [getattr(environment, f"{kind}_space", None) for kind in ("observation", "action")]
        self.spaces = spaces_of(name, *spaces)
        self._flat, self._shape = flattener(spaces[0]), spaces[0].shape if is_vector(spaces[0]) else None
        self._place: tuple[int, int | None, int] = (0, None, 0)  # episode, seed, step

    def _fault(self, words: str) -> UserError:
        episode, seed, step = self._place
        return UserError(
            f"environment: {self.name!r} (number {self.number}, episode {episode}, seed {seed}, step {step}): {words}."
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation; ``options`` may name the ``episode`` for messages, and are not passed on."""
        self._place = ((options or {}).get("episode", 0), seed, 0)
        try:
            found = self.environment.reset(seed=seed)
        except (Exception, SystemExit) as error:  # any code of a user
            hint = f"; {_SIGNATURE}" if isinstance(error, TypeError) and "argument" in str(error) else ""
            raise self._fault(f"reset() raised {raised_in_words(error)}{hint}") from error
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
            raise self._fault(f"reset() returned {_form(found)}; return observation, info (a dict)")
        return self._observed("reset", found[0]), found[1]

    def step(self, action: Any) -> Step:
        """Observation (obs_dim,), reward, whether it terminated, whether it was truncated, and its info."""
        episode, seed, step = self._place
        self._place = (episode, seed, step + 1)
        try:
            found = self.environment.step(action)
        except (Exception, SystemExit) as error:  # any code of a user
            hint = f"; step() must {_STEP}" if isinstance(error, ValueError) and "unpack" in str(error) else ""
            raise self._fault(f"step() raised {raised_in_words(error)}{hint}") from error
        if not isinstance(found, (tuple, list)) or len(found) != 5:
            raise self._fault(f"step() returned {_form(found)}; {_STEP}")
        observation, reward, terminated, truncated, info = found
        if not isinstance(reward, float):
            reward = self._reward(reward)
        if not abs(reward) <= LARGEST_SCORE:  # true of NaN as well
            raise self._fault(f"step() gave the reward {reward}, expected a finite number of at most {LARGEST_SCORE:g}")
        return (
            self._observed("step", observation),
            reward,
            terminated if type(terminated) in _FLAGS else self._flag("terminated", terminated),
            truncated if type(truncated) in _FLAGS else self._flag("truncated", truncated),
            info,
        )

    def _observed(self, function: str, observation: Any) -> np.ndarray:
        vector: np.ndarray = observation
        if type(vector) is not np.ndarray or vector.dtype != np.float32 or vector.shape != self._shape:  # mostly, it is
            try:
                with np.errstate(over="ignore"):
                    vector = np.asarray(self._flat(observation), dtype=np.float32)
            except ValueError as error:
                raise self._fault(f"{function}() gave {error}") from None
        if not all_finite(vector):
            where = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise self._fault(
                f"{function}() gave an observation whose number {where} is {vector[where]} in float32, expected finite numbers"
            )
        return vector

    def _reward(self, reward: Any) -> float:
        array = np.asarray(reward) if not isinstance(reward, (str, bytes, type(None))) else np.asarray("")
        if array.dtype.kind not in "fiub" or array.size != 1:
            raise self._fault(f"step() gave the reward {_form(reward)}, expected a number")
        return float(array.reshape(()))

    def _flag(self, name: str, flag: Any) -> bool:
        array = np.asarray(flag) if isinstance(flag, (bool, int, np.generic, np.ndarray)) else np.asarray("")
        if array.dtype.kind not in "biu" or array.size != 1 or array.reshape(()) not in (0, 1):
            raise self._fault(f"step() gave {_form(flag)} as {name}, expected True or False")
        return bool(array.reshape(()))

    def render(self) -> Any:
        return self.environment.render()

    @property
    def metadata(self) -> Any:
        return self.environment.metadata

    def close(self) -> None:
        """Closes it; an environment that cannot be closed costs no result."""
        with contextlib.suppress(Exception):
            self.environment.close()


def _form(value: Any) -> str:
    """A value's form in a few words."""
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{type(value).__name__}"
