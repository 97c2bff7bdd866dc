"""The commands of a pipeline: run, status, why, logs, clean."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UserError

if TYPE_CHECKING:
    from accord.pipeline.plan import PipelineConfig, Planned
    from accord.pipeline.status import StageStatus

STATES = {
    "done": "✓ done",
    "running": "▶ running",
    "failed": "✗ failed",
    "interrupted": "‖ interrupted",
    "waiting": "… waiting",
    "runs": "· would run",
    "may run": "? may run",
    "damaged": "✗ damaged",
}


def add_pipeline(commands: Any, formatter: Any, common: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds the commands to the parser of ``accord``; ``common`` adds the options of every command."""
    stages = {"action": "append", "default": [], "metavar": "STAGE"}
    run = commands.add_parser(
        "run", help="run the stages of a pipeline that are not up to date", formatter_class=formatter
    )
    run.add_argument("pipeline", metavar="FILE", help="the pipeline's YAML file, e.g. configs/pipeline.yaml")
    run.add_argument(
        "--only",
        help="run only these stages: a name, a grid's name, a pattern (ppo_*), or a comma-separated list",
        **stages,
    )
    run.add_argument("--force", help="run these stages again although nothing changed", **stages)
    run.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="the same as key=value without --set"
    )
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of parallel stages, each in its own process (default: 1; with --on as many as the cluster has CPUs)",
    )
    run.add_argument(
        "--on",
        default="",
        metavar="ray[=ADDRESS]",
        help="run stages on a Ray cluster: of this machine, the running one (ray=auto), or ray=HOST:PORT",
    )
    run.add_argument("--dry-run", action="store_true", help="show which stages would run and why, without running them")
    run.add_argument(
        "--emit", choices=("makefile", "dvc"), help="print a Makefile or dvc.yaml of the pipeline, without running it"
    )
    common(run)
    run.set_defaults(act=run_all)
    for name, act, words in (
        ("status", show_status, "show the status of each stage of a pipeline"),
        ("why", show_why, "show why a stage would run: what changed since its last run"),
        ("logs", show_logs, "show the log of a stage"),
        ("clean", clean, "remove folders that no stage of a pipeline owns, after confirmation"),
    ):
        command = commands.add_parser(name, help=words, formatter_class=formatter)
        if name in ("why", "logs"):
            command.add_argument("stage", metavar="STAGE")
        if name == "logs":
            command.add_argument("-f", "--follow", action="store_true", help="keep printing until the stage ends")
        if name == "clean":
            command.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        command.add_argument(
            "pipeline", metavar="FILE", nargs="?", help="the pipeline's YAML file (default: the one run last)"
        )
        common(command)
        command.set_defaults(act=act)


def run_all(options: argparse.Namespace) -> int:
    from accord.pipeline.orchestrator import Options, run_pipeline

    if options.dry_run or options.emit:
        return _emit(options) if options.emit else _dry_run(options)
    from accord.runtime.output import lasting_output

    run_options = Options(tuple(options.only), tuple(options.force), options.jobs, options.on)
    with lasting_output():
        run_pipeline(options.pipeline, options.overrides, run_options)
    return 0


def _emit(options: argparse.Namespace) -> int:
    from accord.pipeline.emit import emit
    from accord.pipeline.plan import plan

    print(emit(options.emit, options.pipeline, options.overrides, *plan(options.pipeline, options.overrides)), end="")
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    from accord.pipeline.plan import selected
    from accord.pipeline.status import stage_statuses

    _, planned, folders = _planned(options.pipeline, options.overrides)
    forced = selected(options.force, planned, "--force")
    only = selected(options.only, planned, "--only") if options.only else {p.name for p in planned}
    found = [s for s in stage_statuses(planned, folders, forced).values() if s.name in only]
    _show(found)
    certain = sum(s.state in ("runs", "failed", "interrupted", "waiting") for s in found)
    possible = sum(s.state == "may run" for s in found)
    more = f", and {possible} more if their inputs change" if possible else ""
    print(f"\n{certain} of {len(found)} stages would run{more}; nothing was run")
    return 0


def _planned(path: str | Path, overrides: Sequence[str]) -> tuple[PipelineConfig, list[Planned], dict[str, Path]]:
    from accord.pipeline.plan import plan
    from accord.pipeline.task import folder

    pipeline, planned = plan(path, overrides)
    return pipeline, planned, {p.name: folder(p.config, p.kind) for p in planned}


def _located(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The pipeline's file and overrides: as given, or those of the last run with that ``out``."""
    from accord.io.records import LastRun, read_record
    from accord.pipeline.orchestrator import LAST
    from accord.pipeline.plan import PipelineConfig

    if options.pipeline:
        return options.pipeline, options.overrides
    from accord.config.load import parse_override

    values = dict(parse_override(o) for o in options.overrides)
    last = Path(str(values.get("out", PipelineConfig.model_fields["out"].default))) / LAST
    found = read_record(last, LastRun, "give the pipeline's file.")
    if not found:
        raise UserError(f"{last}: no pipeline has run here; give its file, or its folder with out=.")
    return str(found["file"]), [*found["overrides"], *options.overrides]


def _show(found: Sequence[StageStatus]) -> None:
    from accord.runtime.tables import Column, make_table, show

    rows = []
    for stage in found:
        reasons = stage.reasons if stage.state in ("runs", "may run") else ()
        words = "; ".join([*([stage.words] if stage.words else []), *reasons])
        rows.append((STATES[stage.state], stage.name, words))
    show(make_table(["", Column(overflow="fold"), Column(overflow="fold")], rows))


def show_status(options: argparse.Namespace) -> int:
    from accord.pipeline.status import stage_statuses

    path, overrides = _located(options)
    pipeline, planned, folders = _planned(path, overrides)
    print(f"{path} in {pipeline.out}")
    _show(list(stage_statuses(planned, folders).values()))
    return 0


def show_why(options: argparse.Namespace) -> int:
    from accord.pipeline.plan import selected
    from accord.pipeline.status import stage_statuses

    _, planned, folders = _planned(*_located(options))
    names = selected([options.stage], planned, "why")
    for stage in stage_statuses(planned, folders).values():
        if stage.name in names:
            print("\n".join(_reasons(stage, folders[stage.name])))
    return 0


def _reasons(stage: StageStatus, directory: Path) -> list[str]:
    """The stage's status, and below it the reasons."""
    from accord.pipeline.records import read_begun, read_done

    if stage.state == "damaged":
        return [f"{stage.name} has a damaged record: {stage.words}"]
    record = read_done(directory) or read_begun(directory)
    then = [f"  {reason}" for reason in record.get("why", ())]
    name, words = stage.name, stage.words
    reasons = [f"  {reason}" for reason in stage.reasons]
    if stage.state == "done":
        because = ["its last run was because:", *then] if then else []
        return [f"{name} is up to date: nothing changed since it ran ({words})", *because]
    if stage.state == "may run":
        return [f"{name} may run: nothing of its own changed since it ran ({words}), but:", *reasons]
    if stage.state == "runs":
        return [f"{name} would run:", *reasons]
    head = {"running": f"{name} is running ({words}), because:", "failed": f"{name} failed: {words}"}
    head["interrupted"] = f"{name} was interrupted ({words}) and would resume; it ran because:"
    head["waiting"] = f"{name} is {words}; it would go on when run again; it ran because:"
    return [
        head[stage.state],
        *(then if stage.state != "failed" else ["it would run again; it ran because:", *then]),
    ]


def show_logs(options: argparse.Namespace) -> int:
    """Prints the log; with ``--follow`` until the stage ends."""
    from accord.pipeline.lock import alive, owner
    from accord.pipeline.plan import selected
    from accord.pipeline.task import logs

    _, planned, folders = _planned(*_located(options))
    for name in sorted(selected([options.stage], planned, "logs")):
        stage = next(p for p in planned if p.name == name)
        log = logs(stage.config, stage.kind) / f"{name}.log"
        if not log.exists():
            raise UserError(f"{log}: no such file; {name} has not run here yet.")
        with log.open(encoding="utf-8", errors="replace") as file:
            while True:
                runs = options.follow and alive(
                    owner(folders[name])
                )  # checked before reading, so that no line is missed
                sys.stdout.write(file.read())
                sys.stdout.flush()
                if not runs:
                    break
                time.sleep(0.3)
    return 0


def clean(options: argparse.Namespace) -> int:
    from accord.pipeline.clean import remove, size, unreferenced
    from accord.runtime.tables import make_table, right, show

    path, overrides = _located(options)
    pipeline, planned, folders = _planned(path, overrides)
    found = unreferenced(pipeline, planned, folders)
    if not found:
        print(f"nothing to remove: everything in {pipeline.out} and {pipeline.logs} belongs to {path}")
        return 0
    sizes = [size(place) / 1e6 for place in found]
    show(make_table([right(""), ""], [(f"  {mb:.1f} MB", str(place)) for mb, place in zip(sizes, found, strict=True)]))
    print(f"{len(found)} paths that no stage of {path} owns, {sum(sizes):.1f} MB")
    if not options.yes and not _confirmed():
        print("nothing was removed")
        return 0
    for place in found:
        remove(place)
    print(f"removed {len(found)}")
    return 0


def _confirmed() -> bool:
    try:
        return input("remove them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print("(no answer; use --yes to remove without confirmation)")
        return False
