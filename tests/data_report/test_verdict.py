"""Limits: numbers of rows, shares, none."""

from __future__ import annotations

import pytest

from accord.data_report.counts import Counts
from accord.data_report.verdict import Limit, default_limits, exceeded, parse_limit
from accord.errors import UserError


def counts(rows: int, **hazards: int) -> Counts:
    made = Counts(rows=rows)
    for name, number in hazards.items():
        for row in range(number):
            made.add_hazards(row + 1, {name.replace("_", "-"): ""})
    return made


@pytest.mark.parametrize(
    ("limit", "number", "past"),
    [("0", 1, True), ("2", 2, False), ("2", 3, True), ("1%", 2, False), ("1%", 3, True), ("none", 200, False)],
)
def test_a_limit_is_the_most_that_is_accepted(limit: str, number: int, past: bool) -> None:
    limits = {**default_limits(), "ties": parse_limit("--max-ties", limit)}
    assert exceeded(counts(200, ties=number), limits) == (["ties"] if past else [])


def test_what_spoils_training_is_accepted_in_no_row_and_the_rest_in_all() -> None:
    found = counts(9, duplicates=9, no_labels=1, unused_columns=9, control_tokens=1)
    assert exceeded(found, default_limits()) == ["control-tokens", "no-labels"]


@pytest.mark.parametrize("text", ["-1", "1.5", "101%", "", "few", "٣", "1e3"])
def test_another_limit_is_a_sentence(text: str) -> None:
    with pytest.raises(
        UserError, match=r"^--max-ties: .*; expected a number of rows such as 3, a share such as 0.5%, or none"
    ):
        parse_limit("--max-ties", text)
    assert parse_limit("--max-ties", "0.5%") == Limit("0.5%", share=0.005)
