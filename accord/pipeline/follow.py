"""Ranks other than 0 run the stages that rank 0 announces, and write nothing but their shards."""

from __future__ import annotations

from typing import Any

from accord.config.common import ParallelStage
from accord.config.load import build
from accord.distributed import mesh
from accord.errors import UserError
from accord.pipeline.references import fetch
from accord.pipeline.task import Task, logs, task_of
from accord.runtime.allocator import keep_memory
from accord.runtime.run import Ranks, Run, StageIdentity
from accord.stage_kinds.table import STAGE_KINDS


def announce(task: Task, resumes: bool) -> None:
    """Rank 0 has the other ranks run a stage with it."""
    config = task.config.model_dump(mode="json")
    mesh.announce({"kind": task.kind, "config": config, "key": task.key, "resumes": resumes})


def follow() -> None:
    """Runs every stage that rank 0 announces, until it has no more.  Raises what a stage raises."""
    while (job := mesh.next_job()) is not None:
        run_job(job)


def run_job(job: dict[str, Any]) -> None:
    """This rank's part of a stage.  Raises UserError where it reads other inputs than rank 0."""
    kind = job["kind"]
    config = build(STAGE_KINDS[kind].settings, job["config"], {}, "the job")
    assert isinstance(config, ParallelStage)
    with mesh.working(config.parallel.timeout_seconds):
        task = task_of(kind, config)
        if task.key != job["key"]:
            raise UserError(
                f"rank {mesh.rank()}: the files that the stage reads are not those of rank 0; every machine needs the same"
                " model and data folders, best on a shared file system."
            )
        mesh.at("opening model and data")
        keep_memory()
        identity = StageIdentity(
            *(task.directory.name, task.directory, logs(config, kind), config.seed),
            *(task.key, task.inputs, task.sources, task.settings),
        )
        ranks = Ranks(False, mesh.anywhere, "")
        with Run(identity, config.log_every, config.save_every, job["resumes"], False, ranks=ranks) as run:
            STAGE_KINDS[kind].call(fetch(kind, config, run.say), run)
