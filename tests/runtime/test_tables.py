"""Tables: what wraps, what stays on its line, and what a pipe gets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from accord.runtime import tables
from accord.runtime.tables import Column, as_text, make_table, right, show

ROWS = [("sft@1", "champion, best_of_all_experiments", "0.8123"), ("reward@12", "", "12.5")]


def columns() -> list[str | Column]:
    return ["model", Column("aliases", overflow="fold"), right("value")]


def test_columns_line_up_and_figures_end_at_the_right() -> None:
    assert as_text(make_table(columns(), ROWS)).splitlines() == [
        "model      aliases                             value",
        "----------------------------------------------------",
        "sft@1      champion, best_of_all_experiments  0.8123",
        "reward@12                                       12.5",
    ]


@pytest.mark.parametrize("width", [50, 40, 28])
def test_a_narrow_table_wraps_words_and_no_figure(width: int) -> None:
    lines = as_text(make_table(columns(), ROWS), width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[2].startswith("sft@1 ")
    assert lines[2].endswith(" 0.8123")
    wrapped = "".join(line[11 : width - 8].strip() for line in lines[2:-1])
    assert wrapped.replace(" ", "") == "champion,best_of_all_experiments"


def test_what_stays_on_one_line_is_never_cut() -> None:
    text = as_text(make_table(columns(), ROWS), 5)
    for whole in ("reward@12", "0.8123", "12.5"):
        assert whole in text


def test_no_header_where_no_column_has_one() -> None:
    assert as_text(make_table(["", ""], [("a", "b [c]"), ("long", "")])) == "a     b [c]\nlong"


def test_a_pipe_gets_a_row_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, lines in ((False, 4), (True, 6)):
        file = io.StringIO()
        monkeypatch.setattr(tables, "console", Console(file=file, width=36, force_terminal=terminal, soft_wrap=True))
        show(make_table(columns(), ROWS))
        assert len(file.getvalue().splitlines()) == lines
