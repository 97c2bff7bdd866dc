"""A command under torchrun: rank 0 runs it, and the other ranks run the stages that it announces."""

from __future__ import annotations

from collections.abc import Callable

from accord.distributed import mesh
from accord.distributed.rendezvous import from_environment
from accord.errors import Failed, Interrupted, UserError
from accord.pipeline.follow import follow


def act_as_rank(act: Callable[[], int], works: bool) -> int:
    """Runs a command on rank 0, or this rank's part of it; returns the exit code.

    ``works``: whether the command runs stages; any other runs on rank 0 alone.  Raises Failed naming the rank where it has
    lost another one, or reports a mistake that rank 0 may not see.
    """
    if not works:
        found = from_environment()
        return 0 if found and found.rank else act()
    place = mesh.join()
    code = 0
    try:
        if place.rank:
            follow()
        else:
            code = act()
            mesh.announce(None)
    except Interrupted:
        raise
    except Exception as error:
        if mesh.lost_contact(error):
            raise Failed(
                f"rank {place.rank} of {place.size}: another rank has ended; its own lines say why."
            ) from error
        if place.rank and isinstance(error, UserError):
            raise Failed(f"rank {place.rank} of {place.size}: {error}") from error
        raise
    mesh.leave()
    return code
