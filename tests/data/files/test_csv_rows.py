from __future__ import annotations

import io

from accord.data.files.csv_rows import csv_rows


def test_only_columns_of_numbers_become_numbers() -> None:
    text = "prompt,margin,label,weight,id\n007,0.5,True,,1\n1e3,x,0.7,2,2\n"
    assert [row for _, row in csv_rows(io.StringIO(text), "f")] == [
        {"prompt": "007", "margin": 0.5, "label": True, "weight": None, "id": "1"},
        {"prompt": "1e3", "margin": "x", "label": 0.7, "weight": 2.0, "id": "2"},
    ]


def test_blank_lines_are_no_rows_and_row_numbers_of_pandas_have_a_name() -> None:
    assert list(csv_rows(io.StringIO(",a\n\n0,x\n\n1,y\n"), "f")) == [
        (1, {"index": "0", "a": "x"}),
        (2, {"index": "1", "a": "y"}),
    ]
