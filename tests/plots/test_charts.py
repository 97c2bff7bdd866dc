"""Which metrics are drawn, in which panel, under which name and unit."""

from __future__ import annotations

import re
from pathlib import Path

from accord.plots.charts import CHARTS, MOST_PANELS, Curve, chart_of, panels, usual_charts

DOCS = Path(__file__).parents[2] / "docs" / "algorithms"

SFT = [
    {"step": 0, "heldout/loss": 2.0},
    {"step": 1, "loss": 3.0, "nll": 3.0, "learning_rate": 0.1},
    {"step": 2, "loss": 2.5, "nll": 2.5, "learning_rate": 0.1},
    {"step": 2, "heldout/loss": 1.5},
]


def test_every_metric_of_a_chart_is_in_the_documentation() -> None:
    documented = {name for page in DOCS.glob("*.md") for name in re.findall(r"`([\w/]+)`", page.read_text())}
    metrics = [name for chart in CHARTS for name in chart.metrics]
    assert [name for name in metrics if name.removeprefix("rollout/") not in documented] == []
    assert len(metrics) == len(set(metrics))


def test_a_stage_shows_training_and_held_out_values_in_one_panel() -> None:
    (panel,) = panels([Curve("sft", [SFT])], usual_charts([SFT]))
    assert (panel.title, panel.y_label, panel.x_label) == ("loss", "nats per token", "optimizer step")
    training, heldout = panel.lines
    assert (training.part, training.xs, training.ys) == ("training", (1, 2), (3.0, 2.5))
    assert (heldout.part, heldout.xs, heldout.ys) == ("held out", (0, 2), (2.0, 1.5))
    assert training.color != heldout.color


def test_constants_are_no_curves_and_a_single_result_is_one() -> None:
    rows = [{"step": 1, "rollout/kl": 0.0, "learning_rate": 1.0}, {"step": 2, "rollout/kl": 0.0, "learning_rate": 0.5}]
    rows += [{"step": 2, "heldout_accuracy": 0.7}]
    assert [chart.title for chart in usual_charts([rows])] == ["accuracy", "learning rate"]


def test_terms_of_the_score_share_a_panel_where_there_are_several() -> None:
    one = [{"step": s, "rollout/score": 1.0 * s, "rollout/term/a": 1.0 * s} for s in (0, 1)]
    two = [{**row, "rollout/term/b": 2.0 * row["step"]} for row in one]
    assert [c.title for c in usual_charts([one])] == ["score"]
    assert [(c.title, *c.metrics.values()) for c in usual_charts([two])] == [
        ("score", "score"),
        ("terms of the score", "a", "b"),
    ]


def test_a_picture_has_at_most_twelve_panels_the_most_important_first() -> None:
    rows = [{"step": s, **{name: float(s) for chart in CHARTS for name in chart.metrics}} for s in (1, 2)]
    charts = usual_charts([rows])
    assert len(charts) == MOST_PANELS < len(CHARTS)
    assert [c.title for c in charts] == [c.title for c in CHARTS[:MOST_PANELS]]


def test_a_metric_alone_has_the_unit_of_its_chart() -> None:
    assert chart_of(["rollout/kl"]).unit == "nats per reply"
    assert chart_of(["heldout/loss"]).title == "heldout/loss"
    assert chart_of(["rollout/term/gold", "rollout/score"]).metrics == {
        "rollout/term/gold": "gold",
        "rollout/score": "score",
    }
    assert chart_of(["ray/wait_seconds"]).title == "ray/wait_seconds"


def test_runs_differ_in_color_and_their_metrics_in_dashes() -> None:
    (panel,) = panels([Curve("a", [SFT]), Curve("b", [SFT])], usual_charts([SFT]))
    assert [(n.label, n.part, n.color, n.dash) for n in panel.lines] == [
        ("a", "training", 0, 0),
        ("a", "held out", 0, 1),
        ("b", "training", 1, 0),
        ("b", "held out", 1, 1),
    ]


def test_seeds_are_their_mean_with_a_band() -> None:
    other = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.5}]
    (panel,) = panels([Curve("sft", [SFT, other])], [chart_of(["loss"])])
    (line,) = panel.lines
    assert line.ys == (4.0, 3.5)
    assert line.band == ((3.0, 2.5), (5.0, 4.5))


def test_smoothing_leaves_the_logged_values_below() -> None:
    (panel,) = panels([Curve("sft", [SFT])], [chart_of(["loss"])], weight=0.5)
    logged, smoothed = panel.lines
    assert (logged.faint, logged.ys) == (True, (3.0, 2.5))
    assert (smoothed.faint, smoothed.ys[0]) == (False, 3.0)
    assert 2.5 < smoothed.ys[1] < 3.0
