"""A ring buffer with the last steps of several environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from accord.functional.advantages import compute_gae

Array: TypeAlias = "Tensor | np.ndarray | Sequence[float] | float"

_GIVEN = ("observations", "actions", "rewards", "values", "log_probs", "dones", "bootstraps")


def _array(x: Array, dtype: torch.dtype) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    return x.detach().to("cpu", dtype).numpy() if isinstance(x, Tensor) else np.asarray(x)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """``B`` steps, in the order that ``get`` was asked for."""

    observations: Tensor  # (B, *obs_shape) float32
    actions: Tensor  # (B,) int64, or (B, length) float32 where an action is a vector
    rewards: Tensor  # (B,) float32
    values: Tensor  # (B,) float32, at sampling time
    log_probs: Tensor  # (B,) float32, under the sampling policy
    dones: Tensor  # (B,) bool, true where the step ended its episode
    advantages: Tensor  # (B,) float32
    returns: Tensor  # (B,) float32

    def __len__(self) -> int:
        return len(self.actions)


_COLUMNS = tuple(field.name for field in fields(RolloutBatch))


class RolloutBuffer:
    """At most ``n_steps`` steps of ``n_envs`` environments; once full, a new step replaces the oldest.

    The arrays are public tensors, (n_steps, n_envs, …) in ring order.  They are
    on the CPU, as environments are; ``get`` gives copies on ``device``, in the order of time or shuffled.

    >>> buffer = RolloutBuffer(n_steps=2, obs_dim=3)
    >>> for reward in (1.0, 2.0):
    ...     buffer.add(torch.zeros(3), action=1, reward=reward, value=0.0, log_prob=-0.7, done=False)
    >>> buffer.compute(last_value=0.0)
    >>> [len(batch) for batch in buffer.get(batch_size=1)]
    [1, 1]
    """

    def __init__(
        self,
        n_steps: int,
        obs_dim: int | tuple[int, ...],
        n_envs: int = 1,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        device: torch.device | str = "cpu",
        continuous: int = 0,
    ) -> None:
        """``continuous``: the length of an action where it is a vector, of real numbers or of choices; 0: an integer."""
        for name, size in (("n_steps", n_steps), ("n_envs", n_envs)):
            if size < 1:
                raise ValueError(f"{name}: {size}, expected 1 or more")
        self.n_steps, self.n_envs, self.gamma, self.gae_lambda = n_steps, n_envs, gamma, gae_lambda
        self.device = torch.device(device)
        self.obs_shape = (obs_dim,) if isinstance(obs_dim, int) else tuple(obs_dim)
        steps = (n_steps, n_envs)
        self.observations = torch.zeros(*steps, *self.obs_shape)
        self.actions = torch.zeros(*steps, continuous) if continuous else torch.zeros(steps, dtype=torch.int64)
        self.rewards = torch.zeros(steps)
        self.values = torch.zeros(steps)
        self.log_probs = torch.zeros(steps)
        self.dones = torch.zeros(steps, dtype=torch.bool)
        self.bootstraps = torch.zeros(steps)
        self.advantages = torch.zeros(steps)
        self.returns = torch.zeros(steps)
        names = {*_GIVEN, *_COLUMNS}
        self._arrays = {
            name: getattr(self, name).numpy() for name in names
        }  # views of the same memory, much faster to index
        self.reset()

    def reset(self) -> None:
        """Drops every step."""
        self._next, self._length, self._computed = 0, 0, False

    def __len__(self) -> int:
        """Steps stored, each of ``n_envs`` environments."""
        return self._length

    @property
    def full(self) -> bool:
        return self._length == self.n_steps

    def begin(self) -> dict[str, np.ndarray]:
        """Drops every step; returns the arrays that ``add`` fills, by the tensor's name, to be written row by row.

        For loops in which a call of ``add`` per step is slow; call ``end`` when all ``n_steps`` rows are written.
        """
        self.reset()
        return self._arrays

    def rows(self) -> dict[str, np.ndarray]:
        """The arrays by the tensors' names, to be read or changed; call ``end`` where steps were changed."""
        return self._arrays

    def end(self) -> None:
        """Marks all rows as written, the oldest first."""
        self._next, self._length, self._computed = 0, self.n_steps, False

    def add(
        self,
        obs: Array,
        action: Array,
        reward: Array,
        value: Array,
        log_prob: Array,
        done: Array,
        bootstrap: Array = 0.0,
    ) -> None:
        """Adds one step: observation, action, reward and so on, (n_envs, …) each; one environment may omit the first dimension.

        ``done`` is true where this step ended the episode, by termination or by a time limit; for the latter
        ``bootstrap`` holds V(final observation) (0 elsewhere), since such an episode is truncated, not terminated.
        Raises ValueError for a wrong shape, and then adds nothing.
        """
        row = self._next
        cut = np.full(self.n_envs, bootstrap) if isinstance(bootstrap, float) else bootstrap
        step: list[tuple[np.ndarray, np.ndarray]] = []
        for name, given in zip(_GIVEN, (obs, action, reward, value, log_prob, done, cut), strict=True):
            slot = self._arrays[name][row]
            x = _array(given, getattr(self, name).dtype)
            if x.shape != slot.shape and not (self.n_envs == 1 and x.shape == slot.shape[1:]):
                raise ValueError(f"{name}: one step has shape {x.shape}, expected {slot.shape}")
            step.append((slot, x))
        for slot, x in step:
            slot[...] = x
        self._next = (row + 1) % self.n_steps
        self._length = min(self._length + 1, self.n_steps)
        self._computed = False

    def _time_order(self) -> np.ndarray | slice:
        """(len,) rows of the ring, oldest first; a slice where the ring has not wrapped around."""
        if self._next in (0, self._length):
            return slice(self._length)
        return (np.arange(self._length) + self._next - self._length) % self.n_steps

    def compute(self, last_value: Tensor | np.ndarray | float) -> None:
        """Sets ``advantages`` and ``returns``.

        ``last_value`` () or (n_envs,) is the value of what was observed after the newest step; it counts only where
        that step did not end its episode.  Raises ValueError where the buffer is empty or the shape is wrong.
        """
        if not self._length:
            raise ValueError("the buffer is empty: add steps before compute")
        last = _array(last_value, torch.float32)
        if last.shape not in ((), (self.n_envs,)):
            raise ValueError(f"last_value: shape {tuple(last.shape)}, expected ({self.n_envs},)")
        order, arrays = self._time_order(), self._arrays
        rewards, values, dones = (arrays[name][order] for name in ("rewards", "values", "dones"))
        arrays["advantages"][order], arrays["returns"][order] = compute_gae(
            rewards, values, dones, last, self.gamma, self.gae_lambda, bootstrap=arrays["bootstraps"][order]
        )
        self._computed = True

    def steps(self) -> dict[str, np.ndarray]:
        """Copies of a ``RolloutBatch``'s arrays, in the order of time, environments side by side."""
        if not self._computed:
            raise ValueError("advantages are not those of the stored steps: call compute before get")
        order, count = self._time_order(), self._length * self.n_envs
        return {
            name: np.array(self._arrays[name][order]).reshape(count, *self._arrays[name].shape[2:]) for name in _COLUMNS
        }

    def get(self, batch_size: int | None = None, generator: Generator | None = None) -> Iterator[RolloutBatch]:
        """Every step of every environment once: shuffled into batches of ``batch_size`` (the last may be smaller), or,
        without it, in one batch in the order of time, environments side by side.

        ``generator`` is a CPU one.  Raises ValueError where ``compute`` has not followed the newest ``add``.
        """
        if not self._computed:
            raise ValueError("advantages are not those of the stored steps: call compute before get")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: {batch_size}, expected 1 or more")
        return self._batches(batch_size, generator)

    def _batches(self, batch_size: int | None, generator: Generator | None) -> Iterator[RolloutBatch]:
        steps = {name: torch.from_numpy(x).to(self.device) for name, x in self.steps().items()}
        if batch_size is None:
            yield RolloutBatch(**steps)
            return
        count = self._length * self.n_envs
        shuffled = torch.randperm(count, generator=generator).to(self.device)
        for rows in torch.split(shuffled, batch_size):
            yield RolloutBatch(**{name: x[rows] for name, x in steps.items()})
