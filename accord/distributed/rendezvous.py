"""How ranks find each other: torchrun's environment variables, or a file through which rank 0 names its port."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from accord.errors import UserError
from accord.io.atomic import write_text
from accord.registry.manifest import versions
from accord.runtime.launcher import is_launched

FILE = "ACCORD_RENDEZVOUS"
"""The environment variable with the path of that file; torchrun does not set it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's place among all, and among those of its machine."""

    rank: int
    size: int
    local_rank: int


def from_environment() -> Place | None:
    """The place that a launcher gave this process; None where none did.  Raises UserError for values that do not fit."""
    if not is_launched():
        return None
    found = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        place = Place(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"] or found["RANK"]))
    except ValueError:
        place = Place(-1, 0, 0)
    if not 0 <= place.rank < place.size:
        given = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise UserError(f"{given}: not a rank of a group; start the ranks with torchrun, or unset these variables.")
    return place


def connect(place: Place, limit: timedelta) -> Any:
    """The key-value store of all ranks.  Raises UserError where it is not reached within ``limit``."""
    try:
        if FILE not in os.environ:
            return next(iter(rendezvous("env://", timeout=limit)))[0]
        meeting = Path(os.environ[FILE])
        if place.rank == 0:
            store = _local_store(0, place, limit)
            write_text(meeting, str(store.port))
            return store
        end = time.monotonic() + limit.total_seconds()
        while not meeting.exists():
            if time.monotonic() > end:
                raise UserError(
                    f"rank 0 did not start within {limit.total_seconds():g} s; run again with less other load."
                )
            time.sleep(0.01)
        return _local_store(int(meeting.read_text()), place, limit)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"rank {place.rank} does not reach the other ranks ({first}); check MASTER_ADDR and MASTER_PORT."
        ) from None


def _local_store(port: int, place: Place, limit: timedelta) -> Any:
    """The store on this machine, which rank 0 holds; port 0: any that is free."""
    is_server = place.rank == 0
    return dist.TCPStore("127.0.0.1", port, place.size, is_server, limit, wait_for_workers=False)  # type: ignore[attr-defined]


def require_same_versions(store: Any, rank: int, size: int) -> None:
    """Raises UserError where another rank runs other versions of accord, torch or Python."""
    mine = " ".join(f"{name} {version}" for name, version in versions().items())
    store.set(f"versions/{rank}", mine)
    for other in range(size):
        theirs = store.get(f"versions/{other}").decode()
        if theirs != mine:
            raise UserError(
                f"rank {other} runs {theirs}, and rank {rank} runs {mine}; install the same versions on every machine."
            )
