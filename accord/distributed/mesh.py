"""The ranks of a stage: who they are, and what they add up, agree on and wait for.

A process that no launcher started is rank 0 of 1: every function here then returns what it is given.  gloo works on CPU
tensors and NCCL on CUDA tensors, in one group.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from accord.distributed import rendezvous
from accord.distributed.watchdog import Watchdog
from accord.errors import Failed, UserError
from accord.runtime.device import resolve_device
from accord.types import Mean

_ALONE = rendezvous.Place(0, 1, 0)
CONNECTION_SECONDS = 600.0
"""How long ranks look for each other."""


@dataclass(slots=True)
class _Group:
    """What this process knows of its group."""

    joined: rendezvous.Place = _ALONE
    """Its place in the group that it has joined."""
    place: rendezvous.Place = _ALONE
    """Its place in the work at hand: alone, except within ``working``."""
    store: Any = None
    jobs: int = 0
    out_of_step: bool = False
    """Whether a job ended with an error, so that other ranks may still be in the middle of it."""
    watchdog: Watchdog | None = None


_group = _Group()


def rank() -> int:
    """This process's number in the work at hand, counted from 0."""
    return _group.place.rank


def size() -> int:
    """The number of ranks that do the work at hand."""
    return _group.place.size


def is_main() -> bool:
    """Whether this is rank 0, the only one that writes files, logs and bars."""
    return _group.place.rank == 0


# ------------------------------------------------------------------ begin and end
def join() -> rendezvous.Place:
    """Joins the group that the environment names, and returns the place there; rank 0 of 1 where no launcher started this.

    Raises UserError where the ranks do not find each other or run different versions.
    """
    place = rendezvous.from_environment()
    if _group.store is not None or place is None or place.size == 1:
        return _group.joined
    _group.store = rendezvous.connect(place, timedelta(seconds=CONNECTION_SECONDS))
    rendezvous.require_same_versions(_group.store, place.rank, place.size)
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        _backend(),
        store=PrefixStore("group", _group.store),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(days=1),  # the watchdog ends what waits longer than the settings allow
    )
    _group.joined = place
    return place


def join_alone() -> None:
    """A group of this process only, for FSDP on one device."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(_backend(), store=store, rank=0, world_size=1)


def _backend() -> str:
    """gloo, with NCCL beside it where there is a GPU."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def has_parent() -> bool:
    """Whether an accord command started this rank; it then speaks for all of them."""
    return rendezvous.FILE in os.environ


def leave() -> None:
    """Leaves the group, where this process is in one."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # another rank has left already
            dist.destroy_process_group()
    _group.joined, _group.place, _group.store = _ALONE, _ALONE, None
    _group.jobs, _group.out_of_step = 0, False


@contextmanager
def working(timeout_seconds: float) -> Iterator[None]:
    """Within it the ranks of the group work together, and a rank that waits longer than the limit ends its process.

    After an error in it the ranks can do nothing together any more.
    """
    _group.place = _group.joined
    if _group.place.size > 1:
        _group.watchdog = Watchdog(_group.store.clone(), rank(), size(), timeout_seconds)
        _group.watchdog.start()
    try:
        yield
    except BaseException:
        _group.out_of_step = _group.place.size > 1
        raise
    finally:
        if _group.watchdog is not None:
            _group.watchdog.stop()
        _group.place, _group.watchdog = _ALONE, None


def at(place: str) -> None:
    """Tells the watchdog where this rank is: a new place is progress."""
    if _group.watchdog is not None:
        _group.watchdog.at(place)


def lost_contact(error: BaseException | None) -> bool:
    """Whether an error only says that another rank has ended."""
    while error is not None:
        text = str(error)
        if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)) or (
            isinstance(error, RuntimeError) and ("gloo" in text or "by peer" in text or "Broken pipe" in text)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------ jobs
def announce(job: Mapping[str, Any] | None) -> None:
    """Rank 0 gives the others a job as JSON data; None: there is no more.

    Raises Failed where an earlier job ended with an error: a rank that is still in it would take one's sums for the other's.
    """
    if _group.out_of_step and job is not None:
        raise Failed("an earlier stage failed, and the other ranks have ended with it; run again.")
    if _group.joined.size > 1 and not _group.out_of_step:
        _group.store.set(f"job/{_group.jobs}", json.dumps(job))
        _group.jobs += 1


def next_job() -> Any:
    """The next job that rank 0 announces; None where there is no more.  Waits as long as it takes."""
    key = f"job/{_group.jobs}"
    while not _group.store.check([key]):
        time.sleep(0.02)
    _group.jobs += 1
    return json.loads(_group.store.get(key))


# ------------------------------------------------------------------ devices
def local_device(name: str) -> torch.device:
    """The device of this rank; one process gets the device that ``name`` says.

    Raises UserError where a machine has fewer devices than ranks.
    """
    device = resolve_device(name)
    if _group.place.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"device: {device.type} serves one process only; use device=cpu, or parallel.nproc=1.")
    if _group.place.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"parallel.nproc: rank {_group.place.rank} needs CUDA device {_group.place.local_rank}, and this machine has"
            f" {torch.cuda.device_count()}; start at most that many ranks on it, or use device=cpu."
        )
    return torch.device("cuda", _group.place.local_rank)


# ------------------------------------------------------------------ sums and agreements
def add(x: Tensor) -> Tensor:
    """The sum of ``x`` over the ranks, of any shape, equal on all."""
    if _group.place.size == 1:
        return x
    total = x.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


def add_means(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """Totals and counts, each summed over the ranks in float64 with one reduction.  All ranks give the same names."""
    if _group.place.size == 1:
        return dict(means)
    values = [x.detach().double().cpu() for mean in means.values() for x in (mean.total, mean.count)]
    summed = add(torch.stack(values)) if values else torch.zeros(0)
    return {name: Mean(summed[2 * i], summed[2 * i + 1]) for i, name in enumerate(means)}


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank."""
    return flag if _group.place.size == 1 else bool(add(torch.tensor(int(flag))))


def broadcast(value: Any) -> Any:
    """Rank 0's value of plain JSON data, on every rank."""
    if _group.place.size == 1:
        return value
    text = json.dumps(value).encode() if _group.place.rank == 0 else b""
    length = add(torch.tensor(len(text)))
    content = torch.zeros(int(length), dtype=torch.uint8)
    if _group.place.rank == 0:
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return json.loads(bytes(content.tolist()))


def barrier() -> None:
    """Waits until every rank is here."""
    if _group.place.size > 1:
        add(torch.zeros(1))


# ------------------------------------------------------------------ shares of work
def passes_of_this_rank(count: int) -> Iterator[tuple[int, bool]]:
    """Which of ``count`` ≥ 1 equal passes this rank runs, and whether a pass is its own or only keeps the ranks in step.

    All ranks run equally many, since FSDP's ranks gather weights together.

    >>> list(passes_of_this_rank(2))
    [(0, True), (1, True)]
    """
    mine = list(range(_group.place.rank, count, _group.place.size))
    longest = -(-count // _group.place.size)
    for turn in range(longest):
        at(f"pass {turn + 1} of {longest} over the data")
        yield (mine[turn], True) if turn < len(mine) else (0, False)


def shares(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices into ``lengths``, divided among ranks: numbers of items differ by at most 1, sums of lengths by little.

    The longest item first, each to the rank with the fewest tokens that has room.

    >>> shares([9, 1, 2, 8], 2)
    [[0, 1], [3, 2]]
    """
    room = [len(lengths) // ranks + (r < len(lengths) % ranks) for r in range(ranks)]
    parts: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        r = min((r for r in range(ranks) if len(parts[r]) < room[r]), key=lambda r: (tokens[r], r))
        parts[r].append(i)
        tokens[r] += lengths[i]
    return parts
