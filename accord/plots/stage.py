"""The picture of one stage, ``<stage>.svg`` beside its log."""

from __future__ import annotations

import time
from pathlib import Path

from accord.io.atomic import write_text
from accord.io.records import read_metrics
from accord.plots.charts import Curve, panels, usual_charts
from accord.plots.svg import picture

SHARE = 0.01  # of the time since the first picture that drawing may take while the stage runs


class StagePicture:
    """Draws the stage's curves when its state is saved, as far as that takes a hundredth of the time, and at its end."""

    def __init__(self, logs: Path, name: str) -> None:
        self.path = logs / f"{name}.svg"
        self._metrics, self._name = logs / "metrics.jsonl", name
        self._next = 0.0

    def update(self) -> None:
        """Draws it where the last time is long enough ago: reading the metrics takes longer the more there are."""
        began = time.monotonic()
        if began >= self._next:
            self.draw()
            self._next = began + (time.monotonic() - began) / SHARE

    def draw(self) -> bool:
        """Writes the picture; False where there is nothing to draw.  Raises OSError, and UserError for damaged metrics."""
        rows = read_metrics(self._metrics)
        drawn = panels([Curve(self._name, [rows])], usual_charts([rows]))
        if not drawn:
            return False
        steps = max(int(row["step"]) for row in rows)
        write_text(self.path, picture(self._name, drawn, f"after step {steps:,}"))
        return True
