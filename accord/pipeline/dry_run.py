"""What one stage would do, and the memory that it would take: everything is opened and checked, nothing trained or written."""

from __future__ import annotations

from accord.config.common import Parallel, ParallelStage, Stage
from accord.errors import Planned, UserError
from accord.pipeline.checks import check_device, check_folders, check_functions
from accord.pipeline.failure import before_start
from accord.pipeline.references import fetch
from accord.pipeline.standalone import prepare
from accord.pipeline.task import logs, task_of, valid_record
from accord.runtime.console import console
from accord.runtime.run import Run, StageIdentity
from accord.stage_kinds.table import STAGE_KINDS


def dry_run(kind: str, config: Stage) -> None:
    """Prints the stage's plan.  Raises UserError for all that would end the stage before its first step."""
    task = task_of(kind, prepare(kind, config, _refuse))
    config, name = task.config, task.directory.name
    check_folders(kind, config, task.sources)
    check_functions(kind, config)
    check_device(config)
    identity = StageIdentity(name, task.directory, logs(config, kind), config.seed, task.key, task.inputs, task.sources)
    with Run(identity, config.log_every, config.save_every, bar=False) as run:
        run.decided = task.decided
        run.dry = config.parallel if isinstance(config, ParallelStage) else Parallel()
        alone = config.model_copy(update={"parallel": Parallel()}) if isinstance(config, ParallelStage) else config
        try:
            STAGE_KINDS[kind].call(fetch(kind, alone, run.say), run)
        except Planned:
            pass
        except Exception as error:
            raise UserError(before_start(name, error)) from error
    done = f"; {task.directory} is already done with these settings" if valid_record(task) else ""
    console.print(f"{name}: nothing was run or written{done}", markup=False)


def _refuse(kind: str, config: Stage, why: str) -> None:
    """Raises UserError for a missing stage, which a run without --dry-run would make first."""
    reason = why.partition(":")[0]
    raise UserError(
        f"{reason}; --dry-run runs nothing, so run 'accord {kind}' first, or name a model or file that is here."
    )
