"""One rank of a stage, in its own process: ``python -m accord.pipeline.rank``, which reads its job from stdin.

The last line on stderr is its error.  When stdin is closed, because the parent asks for it or has ended, all ranks save
the state and stop.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from accord.config.load import build
from accord.distributed import mesh
from accord.errors import Interrupted, UserError
from accord.pipeline.child import STOPPED, run_job
from accord.pipeline.failure import in_words
from accord.pipeline.follow import follow
from accord.pipeline.ranks import DONE, FAILED, LOST, WRONG
from accord.pipeline.stage import run_stage
from accord.pipeline.task import logs
from accord.stage_kinds.table import STAGE_KINDS


def work(job: dict[str, Any]) -> int:
    """Runs the rank's part of the stage; returns the exit code."""
    config = build(STAGE_KINDS[job["kind"]].settings, job["config"], {}, "the job")
    rank = 0
    try:
        rank = mesh.join().rank
        if rank:
            follow()
        else:
            journal = Path(job["journal"]) if job["journal"] else None
            options = {name: job[name] for name in ("resume", "reuse", "force", "bar")}
            run_stage(job["kind"], config, **options, journal=journal)
            mesh.announce(None)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except Exception as error:  # the parent reads it
        place = logs(config, job["kind"])
        if rank and not isinstance(error, UserError):  # the parent appends it to the stage's log
            traceback.print_exc()
        print(" ".join(in_words(error, place / f"{place.name}.log").split()), file=sys.stderr)
        if mesh.lost_contact(error):
            return LOST
        return WRONG if isinstance(error, UserError) else FAILED
    mesh.leave()
    return DONE


if __name__ == "__main__":
    run_job(work)
