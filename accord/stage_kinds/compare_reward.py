"""The stage ``compare`` on a reward model alone: its accuracy on pairs, with intervals, by category."""

from __future__ import annotations

from typing import Any

from accord.config.evaluation import RewardCompareConfig
from accord.data.preferences import decided
from accord.errors import UserError
from accord.evaluation.report import write_results
from accord.evaluation.reward_models import Reading, accuracy_figures, read_judged, score_data
from accord.evaluation.reward_report import WIDE, markdown_table, table
from accord.io.atomic import write_text
from accord.models.reward import RewardModel
from accord.registry.manifest import versions
from accord.runtime.console import console
from accord.runtime.device import resolve_device
from accord.runtime.optional import optional
from accord.runtime.run import Run
from accord.training.describe import describe_model

CATEGORIES = ("subset", "category")
"""Columns that name a category where none is asked for: those of RewardBench and its like."""


def run_compare_reward(config: RewardCompareConfig, run: Run) -> dict[str, float]:
    """Writes ``results.json``, ``results.md`` and ``results.txt`` and prints the table; returns the accuracy.

    Raises UserError where the file has no pairs, or the column is in none of its rows.
    """
    device = resolve_device(config.device)
    asked = (config.category,) if config.category else CATEGORIES
    reading = Reading(config.limit, config.max_length, asked)
    model = RewardModel.open(config.reward_model).eval().requires_grad_(False)
    data = read_judged(config.reward_model, model, config.pairs, reading)
    if config.category and not any(data.categories):
        raise UserError(
            f"category: no row of {config.pairs} has a column {config.category!r}; name another, or leave it out."
        )
    run.plan({"model": describe_model(model, config.reward_model), "pairs": data.report.describe()})
    preferred = len(decided(data.pairs))
    passes = sum(-(-count // config.batch_size) for count in (preferred, len(data) - preferred))
    run.begin(passes, resumable=False)
    scored = 0

    def tick(pairs: int) -> None:
        nonlocal scored
        scored += pairs
        run.tick({"pairs": float(scored)})
        run.check_stop()

    figures = accuracy_figures(score_data(config.reward_model, model, data, device, config.batch_size, tick))
    _report(run, config, figures)
    return {"heldout_accuracy": figures["heldout_accuracy"], "n_heldout": float(figures["n_heldout"])}


def _report(run: Run, config: RewardCompareConfig, figures: dict[str, Any]) -> None:
    """Writes the files and prints the table."""
    write_results(run.directory / "results.json", {"reward": figures, "seed": config.seed, "versions": versions()})
    with optional("results.md", run.say):
        write_text(run.directory / "results.md", markdown_table(figures))
    text = f"\n{table(figures, console.width if console.is_terminal else WIDE)}"
    run.say(text)
    with optional("results.txt", run.say):
        write_text(run.directory / "results.txt", text + "\n")
