"""Which metrics share a panel, what it is called, and in which unit: for one run and for several over each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from accord.plots.series import Series, mean, points, smooth, thin
from accord.plots.svg import Line, Panel

Rows = Sequence[Mapping[str, float]]
MOST_PANELS = 12
STEPS = "step"
X_LABELS = {
    STEPS: "optimizer step",
    "rollout/timesteps": "environment step",
    "rollout/kl": "KL to the reference, nats per reply",
}
TERM = "rollout/term/"


@dataclass(frozen=True, slots=True)
class Chart:
    """Metrics of one panel, each with the name of its line, in the order in which they are drawn."""

    title: str
    unit: str
    metrics: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn in one color: a run, or several that differ in their seed alone."""

    label: str
    runs: Sequence[Rows]


CHARTS = (
    Chart("score", "mean of a rollout's replies", {"rollout/score": "score"}),
    Chart("return", "mean of episodes", {"rollout/episode_return": "training", "rollout/eval_return": "evaluation"}),
    Chart("KL to the reference", "nats per reply", {"rollout/kl": "KL"}),
    Chart("loss", "", {"loss": "training", "heldout/loss": "held out"}),
    Chart("accuracy", "share", {"accuracy": "step", "heldout_accuracy": "held out", "train_accuracy": "training"}),
    Chart("margin", "chosen − rejected", {"margin": "step", "heldout_margin": "held out"}),
    Chart("rewards", "mean of replies", {"chosen_reward": "chosen", "rejected_reward": "rejected"}),
    Chart("log-probabilities", "nats per reply", {"chosen_logprob": "chosen", "rejected_logprob": "rejected"}),
    Chart("policy loss", "per action", {"policy_loss": "policy"}),
    Chart("value loss", "per action", {"value_loss": "value"}),
    Chart("entropy", "nats per action", {"entropy": "entropy"}),
    Chart("length", "tokens per reply", {"rollout/length": "length"}),
    Chart("replies that end", "share", {"rollout/eos_rate": "end"}),
    Chart("explained variance", "of the returns, by the critic", {"rollout/explained_variance": "variance"}),
    Chart("clip fraction", "share of actions", {"clip_fraction": "clipped"}),
    Chart("approximate KL", "to the behavior policy, nats per action", {"approx_kl": "KL"}),
    Chart("gradient norm", "before clipping", {"grad_norm": "norm"}),
    Chart("learning rate", "", {"learning_rate": "rate"}),
)
"""In order of importance: a picture of a stage shows the first ones of which it has values."""


def metrics_of(runs: Sequence[Rows]) -> list[str]:
    """The names of all metrics in the order in which they first occur."""
    return [name for name in dict.fromkeys(key for rows in runs for row in rows for key in row) if name != STEPS]


def usual_charts(runs: Sequence[Rows]) -> list[Chart]:
    """The charts of which there are values that change, at most twelve."""
    known = set(metrics_of(runs))
    terms = [name for name in metrics_of(runs) if name.startswith(TERM)]
    charts = list(CHARTS)
    if len(terms) > 1:
        parts = {name: name.removeprefix(TERM) for name in terms}
        charts.insert(1, Chart("terms of the score", "mean of a rollout's replies", parts))
    return [_with_unit(chart, known) for chart in charts if _changes(chart, runs)][:MOST_PANELS]


def chart_of(metrics: Sequence[str]) -> Chart:
    """One chart of metrics that the user names."""
    if len(metrics) == 1:
        for chart in CHARTS:
            if metrics[0] in chart.metrics:
                title = chart.title if next(iter(chart.metrics)) == metrics[0] else metrics[0]
                return Chart(title, chart.unit, {metrics[0]: chart.metrics[metrics[0]]})
        unit = CHARTS[0].unit if metrics[0].startswith(TERM) else ""
        return Chart(metrics[0].removeprefix(TERM), unit, {metrics[0]: metrics[0]})
    names = [name.removeprefix(TERM).removeprefix("rollout/") for name in metrics]
    return Chart(" and ".join(names), "", dict(zip(metrics, names, strict=True)))


def _with_unit(chart: Chart, known: set[str]) -> Chart:
    """Losses of supervised texts, which have a metric nll, are in nats per token."""
    return Chart(chart.title, "nats per token", chart.metrics) if chart.title == "loss" and "nll" in known else chart


def _changes(chart: Chart, runs: Sequence[Rows]) -> bool:
    """Whether a metric of the chart has two different values, or its only one is a result, not a constant."""
    for rows in runs:
        for name in chart.metrics:
            found = [row[name] for row in rows if name in row and math.isfinite(row[name])]
            if len(set(found)) > 1 or len(found) == 1:
                return True
    return False


def panels(curves: Sequence[Curve], charts: Sequence[Chart], x: str = STEPS, weight: float = 0.0) -> list[Panel]:
    """The charts as panels, with a color for each curve; of one curve alone, with a color for each metric."""
    return [
        Panel(chart.title, X_LABELS.get(x, x), chart.unit, lines)
        for chart in charts
        if (lines := list(_lines(curves, chart, x, weight)))
    ]


def _lines(curves: Sequence[Curve], chart: Chart, x: str, weight: float) -> Iterator[Line]:
    alone = len(curves) == 1
    for i, curve in enumerate(curves):
        for j, (metric, part) in enumerate(chart.metrics.items()):
            found = [s for rows in curve.runs if (s := points(rows, metric, x)).xs]
            if not found:
                continue
            raw = mean(found)
            color, dash = (j, 0) if alone else (i, j)
            if weight:
                yield _line(curve.label, part, Series(raw.xs, raw.ys), color, dash, faint=True)
            yield _line(curve.label, part, mean([smooth(s, weight) for s in found]), color, dash)


def _line(label: str, part: str, series: Series, color: int, dash: int, faint: bool = False) -> Line:
    drawn = thin(series)
    return Line(label, part, drawn.xs, drawn.ys, color, dash, faint, drawn.band)
