"""Pictures: well-formed, with every label and value where it belongs."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from accord.plots.svg import Line, Panel, number, picture, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*lines: Line, title: str = "score", unit: str = "nats") -> ElementTree.Element:
    return ElementTree.fromstring(picture("a run", [Panel(title, "optimizer step", unit, lines)], "a note"))


def texts(root: ElementTree.Element) -> list[str]:
    return [str(e.text) for e in root.iter(f"{SVG}text")]


def ways(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of each line, in pixels of its panel: the paths with a title."""
    found = [str(e.get("d")) for e in root.iter(f"{SVG}path") if e.find(f"{SVG}title") is not None]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", way)] for way in found]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 50, 100]),
        (0.13, 0.61, [0, 0.2, 0.4, 0.6, 0.8]),
        (-2e-7, 3.5, [0, 1, 2, 3, 4]),
        (5, 5, [4.5, 5, 5.5]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (-3, -1, [-3, -2.5, -2, -1.5, -1]),
        (1e-9, 3e-9, [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9]),
    ],
)
def test_ticks_are_round_numbers_around_all_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short() -> None:
    shown = {
        0: "0",
        0.25: "0.25",
        -1.5: "-1.5",
        1500: "1,500",
        20_000: "20k",
        2.5e6: "2.5M",
        3e9: "3G",
        3e-4: "0.0003",
        3e-5: "3e-5",
    }
    assert {value: number(value) for value in shown} == shown
    assert number(1e30) == "1e30"


def test_a_line_goes_through_its_points() -> None:
    root = drawn(Line("a", "", (0, 50, 100), (0.0, 1.0, 0.5)))
    (way,) = ways(root)
    assert way == [(60, 164), (182, 36), (304, 100)]  # the area is 244 wide and 128 high, from (60, 36) on
    assert {"score", "nats", "optimizer step", "0", "50", "100", "0.5", "1"} <= set(texts(root))


def test_a_value_that_is_not_finite_interrupts_the_line() -> None:
    root = drawn(Line("a", "", (0, 1, 2, 3, 4, 5), (0.0, 1.0, math.nan, math.inf, 1.0, 0.0)))
    assert [len(way) for way in ways(root)] == [2, 2]
    assert "nan" not in ElementTree.tostring(root, "unicode")


def test_values_too_large_for_differences_are_left_out() -> None:
    root = drawn(Line("a", "", (0, 1, 2, 3), (1.7e308, -1.7e308, 1.0, 2.0)))
    assert [len(way) for way in ways(root)] == [2]


def test_a_line_of_one_point_shows_its_value() -> None:
    root = drawn(Line("a", "step", (0, 10), (0.0, 1.0)), Line("a", "held out", (10,), (0.73,), color=1))
    assert len(list(root.iter(f"{SVG}circle"))) == 1
    assert {"0.73", "step", "held out"} <= set(texts(root))


def test_values_of_single_points_do_not_cover_each_other() -> None:
    root = drawn(*(Line("a", str(i), (10,), (0.7 + i / 1000,)) for i in range(3)))
    heights = sorted(float(str(e.get("y"))) for e in root.iter(f"{SVG}text") if e.get("paint-order"))
    assert len(heights) == 3
    assert all(b - a >= 11 for a, b in pairwise(heights))


def test_runs_are_in_one_legend_and_metrics_in_that_of_their_panel() -> None:
    lines = [Line(run, part, (0, 1), (0.0, 1.0), i, j) for i, run in enumerate("ab") for j, part in enumerate("xy")]
    names = texts(drawn(*lines))
    assert [names.count(n) for n in "abxy"] == [1, 1, 1, 1]
    assert "a" not in texts(drawn(lines[0]))


def test_a_line_under_a_smoothed_one_has_no_entry() -> None:
    names = texts(drawn(Line("a", "x", (0, 1), (0, 1), faint=True), Line("b", "x", (0, 1), (0, 1))))
    assert "a" not in names


def test_panels_of_one_x_axis_have_the_same_ends() -> None:
    pair = [Panel("p", "step", "", [Line("a", "", xs, (0.0, 1.0))]) for xs in ((0, 40), (1, 100))]
    first, second = ways(ElementTree.fromstring(picture("t", pair)))
    assert (first[0][0], second[-1][0]) == (60, 304)
    assert first[1][0] == pytest.approx(60 + 0.4 * 244)


@pytest.mark.parametrize("words", ["<script>&\"'", "\x00\x1b[31m\ud800", "ü " * 500, ""])
def test_any_text_makes_a_valid_picture(words: str) -> None:
    line = Line(words, words, (0, 1), (0.0, 1.0))
    text = picture(words, [Panel(words, words, words, [line, line])], words)
    ElementTree.fromstring(text.encode())
    assert "<script" not in text


def test_no_panel_and_no_value_make_a_valid_picture() -> None:
    ElementTree.fromstring(picture("t", []))
    assert ways(drawn(Line("a", "", (), ()))) == []
    assert ways(drawn(Line("a", "", (0, 1), (math.nan, math.nan)))) == []
