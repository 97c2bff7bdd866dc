"""The command ``accord plot``: its options, and from them to a picture."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.errors import UserError
from accord.io.atomic import write_text

LOGS = "logs/rlhf"
"""As ``logs`` of the stages where nothing else is set."""
OVERVIEW = """\
Draws metrics of training as an SVG picture, runs over each other.  A browser shows it; no library is needed.

  accord plot ppo_lm                                  all curves of a stage in logs/rlhf, as in its own picture there
  accord plot ppo_lm runs/mine/logs/ppo_lm            two runs over each other
  accord plot runs/seed*/logs/ppo_lm                  seeds: their mean, and a band from the lowest to the highest
  accord plot ppo_lm --metric score --metric kl       two panels
  accord plot sft --metric loss,heldout/loss          two metrics in one panel
  accord plot ppo_lm --metric score --x kl            score over KL instead of steps

RUN is a stage's name, a stage's folder of logs or of results, or a file of metrics (JSON Lines with "step").
Runs whose paths differ in seed0, seed_1, seed=2 or s3 alone are one curve."""


def add_command(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Adds ``plot`` to argparse's ``commands``."""
    top = commands.add_parser(
        "plot", help="draw the curves of one run or several", description=OVERVIEW, formatter_class=formatter
    )
    top.add_argument("runs", nargs="+", metavar="RUN", help="a stage's name, a folder, or a file of metrics")
    top.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a panel of this metric, or of several joined by commas; 'rollout/' may be left out (default: all usual ones)",
    )
    top.add_argument("--x", default="step", metavar="NAME", help="metric of the x axis (default: step)")
    top.add_argument(
        "--smoothing",
        type=float,
        default=0.0,
        metavar="W",
        help="exponential moving average with weight W of the past, as in TensorBoard: 0 (default) up to below 1",
    )
    top.add_argument("--each", action="store_true", help="draw every seed as a curve of its own")
    top.add_argument("--logs", default=LOGS, metavar="FOLDER", help=f"folder of the stages' logs (default {LOGS})")
    top.add_argument("--out", default="plot.svg", metavar="FILE", help="the picture (default plot.svg)")
    top.add_argument("--title", default="", help="its title (default: the run, or the metrics)")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    top.set_defaults(act=plot)


def plot(options: argparse.Namespace) -> int:
    """Writes the picture.  Raises UserError where a run, a metric or an option is not what it has to be."""
    from accord.plots.charts import chart_of, metrics_of, panels, usual_charts
    from accord.plots.runs import curves_of, read_runs
    from accord.plots.svg import picture

    out = Path(options.out)
    if out.suffix != ".svg":
        name = "plot.svg" if out.name == ".svg" else f"{options.out.removesuffix(out.suffix)}.svg"
        raise UserError(f"--out {options.out}: the picture is an SVG; type --out {name}.")
    if not (math.isfinite(options.smoothing) and 0 <= options.smoothing < 1):
        raise UserError(f"--smoothing {options.smoothing:g}: from 0 (none) to below 1.")
    found = read_runs(options.runs, Path(options.logs))
    for run in found:
        if not run.rows:
            print(f"accord: note: {run.path} holds no metrics yet.", file=sys.stderr)
    curves = curves_of(found, each=options.each)
    rows = [rows for curve in curves for rows in curve.runs]
    known = metrics_of(rows)
    x = options.x if options.x == "step" else metric_named(options.x, known, "--x")
    wanted = [[metric_named(name, known, "--metric") for name in group.split(",")] for group in options.metric]
    charts = [chart_of(group) for group in wanted] or usual_charts(rows) or [chart_of([name]) for name in known]
    drawn = panels(curves, charts, x, options.smoothing)
    if not drawn:
        raise UserError(f"--x {options.x}: no line of the runs comes after one with {x}.")
    for curve in curves:
        for name in (name for chart in charts for name in chart.metrics if options.metric):
            if not any(name in row for rows in curve.runs for row in rows):
                print(f"accord: note: {curve.label} has no {name}.", file=sys.stderr)
    title = options.title or (curves[0].label if len(curves) == 1 else ", ".join(c.title for c in charts[:3]))
    notes = ["lines: mean of the seeds; bands: lowest and highest"] if any(len(c.runs) > 1 for c in curves) else []
    if options.smoothing:
        notes.append(f"moving average with weight {options.smoothing:g} of the past; faint: as logged")
    write_text(out, picture(title, drawn, "; ".join(notes)))
    print(f"wrote {out}: {_count(len(drawn), 'panel')}, {_count(len(curves), 'curve')} of {_count(len(rows), 'run')}")
    return 0


def metric_named(name: str, known: Sequence[str], option: str) -> str:
    """The metric that a name means: itself, or the only one that ends with it.  Raises UserError."""
    if name in known:
        return name
    for prefix in ("rollout/", "rollout/term/"):
        if prefix + name in known:
            return prefix + name
    near = difflib.get_close_matches(name, [*known, *(k.rpartition("/")[2] for k in known)], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the runs have {', '.join(known)}."
    raise UserError(f"{option} {name}: the runs have no such metric; {hint}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
