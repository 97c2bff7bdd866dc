"""Written JSON is valid everywhere: null for a figure that is not finite, and NaN again when it is read as a figure."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.io.finite_json import dumps, figures, finite, shown

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_is_null_at_any_depth(bad: float) -> None:
    assert dumps({"a": bad, "b": [1.5, (bad, {"c": bad})], "d": "NaN", "e": True}) == (
        '{"a": null, "b": [1.5, [null, {"c": null}]], "d": "NaN", "e": true}'
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_any_json_parser_reads_it(value: Any) -> None:
    assert json.loads(dumps(value), parse_constant=pytest.fail) == finite(value)


def test_finite_values_are_written_as_json_writes_them() -> None:
    value = {"b": [0.1, 1e300, -0.0, 2**60], "a": "ü"}
    assert dumps(value, indent=2, ensure_ascii=False) == json.dumps(value, indent=2, ensure_ascii=False)


def test_figures_are_numbers_and_null_is_nan() -> None:
    read = figures({"a": None, "b": 1, "c": 0.5, "d": "x", "e": True, "f": [1]})
    assert list(read) == ["a", "b", "c"]
    assert math.isnan(read["a"])
    assert (read["b"], read["c"]) == (1, 0.5)
    assert figures(None) == figures([1]) == {}


def test_an_undefined_figure_is_shown_as_a_dash() -> None:
    assert [shown(x) for x in (None, NAN, INF, 0.123456, 3)] == ["-", "-", "-", "0.1235", "3"]
    assert shown(0.123456, "+.2f") == "+0.12"
