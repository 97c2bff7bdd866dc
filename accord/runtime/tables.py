"""Tables for the terminal and for files: columns of text that line up, by rich; family trees alike.

A column given as a string keeps its cells on one line, figures above all; one given as ``Column(...)`` wraps where the
terminal is narrow.  Where even that does not fit, lines are longer than the terminal: no figure is cut.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from accord.runtime.console import console

__all__ = ["Column", "as_text", "make_table", "right", "show", "show_tree"]

LONGEST = 10_000  # line
NARROWEST = 8  # column of text that wraps
GAP = 2  # between columns
RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # a line under the headers and no other


def make_table(columns: Iterable[str | Column], rows: Iterable[Sequence[str]]) -> Table:
    """A table without borders; without a header where no column has one."""
    fixed = [Column(c, no_wrap=True) if isinstance(c, str) else c for c in columns]
    shown = any(column.header for column in fixed)
    table = Table(*fixed, box=RULE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=shown)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def right(header: str) -> Column:
    """A column of figures, aligned to the right."""
    return Column(header, justify="right", no_wrap=True)


def as_text(content: Table | Tree, width: int | None = None) -> str:
    """Its lines, at most ``width`` columns long where the cells allow it; None: as long as they are."""
    writer = Console(file=io.StringIO(), width=LONGEST, color_system=None, force_terminal=False)
    longest = Measurement.get(writer, writer.options, content).maximum
    narrowest = _narrowest(content) if isinstance(content, Table) else 0
    with writer.capture() as captured:
        writer.print(content, width=longest if width is None else min(longest, max(width, narrowest)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _narrowest(table: Table) -> int:
    """Columns of the terminal below which cells that stay on one line would be cut."""
    widths = [
        max(cell_len(line) for text in (column.header, *column.cells) for line in str(text).split("\n"))
        if column.no_wrap
        else NARROWEST
        for column in table.columns
    ]
    return sum(widths) + GAP * (len(widths) - 1)


def show(table: Table) -> None:
    """Prints it, as wide as the terminal; into a pipe or a file a row is a line."""
    console.print(as_text(table, console.width if console.is_terminal else None), markup=False)


def show_tree(tree: Tree) -> None:
    """The same of a tree, with its styles where there is a terminal."""
    if console.is_terminal:
        console.print(tree, soft_wrap=False)
    else:
        console.print(as_text(tree), markup=False)
