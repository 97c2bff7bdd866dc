"""A pipeline's progress: a live table of its stages in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.cells import cell_len, set_cell_size
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from accord.pipeline.plan import Planned
from accord.pipeline.stage import Outcome
from accord.pipeline.status import duration, final_metrics, read_progress, running_metrics, time_left
from accord.runtime.console import console

MARKS = {"done": "✓", "failed": "✗", "not run": "-", "running": "▶", "waiting": "…", "pending": "·"}
STYLES = {
    "done": "green",
    "failed": "red",
    "not run": "yellow",
    "running": "bold",
    "waiting": "yellow",
    "pending": "dim",
}


class Lines:
    """One line for each stage that ends."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def started(self, name: str) -> None:
        """The stage prints its own plan."""

    def ended(self, name: str, outcome: Outcome) -> None:
        words = "unchanged, kept" if outcome.skipped else f"done in {outcome.done['seconds']:.0f} s"
        console.print(f"✓ {name}: {words}", markup=False)

    def failed(self, name: str, words: str) -> None:
        console.print(f"✗ {name}: failed: {words}", markup=False)

    def waits(self, name: str, words: str) -> None:
        console.print(f"… {words}", markup=False)

    def not_run(self, name: str, cause: str) -> None:
        console.print(f"- {name}: not run, because {cause}", markup=False)


@dataclass(slots=True)
class _Row:
    state: str
    words: str = ""
    since: float = 0.0


class LiveTable:
    """All stages with progress, time left and metrics, read from progress.json twice a second."""

    def __init__(self, planned: Sequence[Planned], folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self.kinds = {stage.name: stage.kind for stage in planned}
        self.rows = {stage.name: _Row("pending") for stage in planned}
        self.live = Live(
            console=console, get_renderable=self.table, refresh_per_second=2, redirect_stderr=False, transient=False
        )

    def __enter__(self) -> LiveTable:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def started(self, name: str) -> None:
        self.rows[name] = _Row("running", since=time.time())

    def ended(self, name: str, outcome: Outcome) -> None:
        words = "unchanged" if outcome.skipped else duration(outcome.done["seconds"])
        self.rows[name] = _Row("done", f"{words}  {final_metrics(self.kinds[name], outcome.metrics)}")
        self.live.refresh()

    def failed(self, name: str, words: str) -> None:
        self.rows[name] = _Row("failed", words)

    def waits(self, name: str, words: str) -> None:
        self.rows[name] = _Row("waiting", words)

    def not_run(self, name: str, cause: str) -> None:
        self.rows[name] = _Row("not run", cause)

    def table(self) -> Table:
        """The rows of all stages, or those around the active ones where there are more stages than lines."""
        names = list(self.rows)
        room = max(40, console.width) - 5  # without the mark and the gaps between columns
        widest = min(max(12, *map(cell_len, names)), room * 2 // 7)  # 12: … 23 above
        table = Table(box=None, pad_edge=False, show_header=False, expand=False)
        for width in (1, widest, room - widest):
            table.add_column(width=width, no_wrap=True, overflow="ellipsis")
        first, last = self._window(names)
        if first:
            table.add_row("", Text(f"… {first} above", "dim"), "")
        for name in names[first:last]:
            table.add_row(*self._cells(name, self.rows[name], widest))
        if last < len(names):
            table.add_row("", Text(f"… {len(names) - last} more", "dim"), "")
        return table

    def _window(self, names: Sequence[str]) -> tuple[int, int]:
        room = max(4, console.height - 6)
        if len(names) <= room:
            return 0, len(names)
        active = next((i for i, name in enumerate(names) if self.rows[name].state in ("running", "pending")), 0)
        first = max(0, min(active - 2, len(names) - room))
        return first, first + room

    def _cells(self, name: str, row: _Row, widest: int) -> tuple[Text, Text, Text | Table]:
        style = STYLES[row.state]
        mark, shown = Text(MARKS[row.state], style), Text(fitted(name, widest), style)
        if row.state != "running":
            words = row.words if row.state == "done" else f"{row.state}  {row.words}".rstrip()
            return mark, shown, Text(words, style)
        bar = 24 if console.width > 100 else 12
        progress = read_progress(self.folders[name])
        if not progress or progress["updated"] < row.since or not progress["total"]:
            passed = Text(duration(time.time() - row.since), "dim")
            return mark, shown, _side_by_side(ProgressBar(width=bar, pulse=True), bar, passed)
        left = time_left(progress)
        parts = [f"{progress['step']}/{progress['total']}", f"{duration(left)} left" if left is not None else ""]
        parts.append(running_metrics(self.kinds[name], progress["metrics"]))
        text = Text("  ".join(part for part in parts if part))
        return mark, shown, _side_by_side(ProgressBar(progress["total"], progress["step"], width=bar), bar, text)


def _side_by_side(bar: ProgressBar, width: int, words: Text) -> Table:
    """A bar and the words beside it."""
    cells = Table.grid(padding=(0, 2, 0, 0))
    cells.add_column(width=width)
    cells.add_column(no_wrap=True, overflow="ellipsis")
    cells.add_row(bar, words)
    return cells


def fitted(name: str, width: int) -> str:
    """A name of at most ``width`` columns, shortened in its middle: the points of a grid differ at their end."""
    if cell_len(name) <= width:
        return name
    tail = next(name[start:] for start in range(len(name) + 1) if cell_len(name[start:]) <= width // 2)
    return f"{set_cell_size(name, width - cell_len(tail) - 1).rstrip()}…{tail}"


def view_for(planned: Sequence[Planned], folders: Mapping[str, Path]) -> Lines | LiveTable:
    """The live table in a terminal, plain lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveTable(planned, folders) if live else Lines()
