"""The picture of a lineage: ancestors above, no overlaps, few crossings, valid SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

from accord.registry.family import Family, Record
from accord.registry.lineage import tree
from accord.registry.picture import Box, _crossings, _layers, _order, _place, svg


def test_ancestors_are_drawn_above_and_boxes_do_not_overlap(diamond: Family) -> None:
    family = diamond
    layers, edges = _layers("dddd", family, {})
    assert [{b.key for b in layer if b.text} for layer in layers] == [
        {"dddd"},
        {"cccc", "m:f"},
        {"bbbb", "ffff"},
        {"aaaa"},
    ]
    assert sorted(len(e.path) for e in edges) == [2, 2, 2, 2, 2, 3, 4], "long edges have a point in each layer between"
    _order(layers, edges)
    _place(layers, edges)
    boxes = [b for layer in layers for b in layer]
    for layer in layers:
        for left, right in pairwise(layer):
            assert left.x + left.width / 2 < right.x - right.width / 2
    place = {b.key: b for b in boxes}
    for edge in edges:
        for upper, lower in pairwise(edge.path):
            assert place[upper].y + place[upper].height + place[upper].room < place[lower].y + 1e-9
    assert min(b.x - b.width / 2 for b in boxes) > 0


def test_lines_that_need_not_cross_do_not() -> None:
    """Two chains side by side, given in the wrong order."""
    rows = [Record("r", "x", "r", parents={"1": "p1", "2": "p2", "3": "p3"})]
    rows += [Record(f"p{i}", "x", f"p{i}", parents={"up": f"q{4 - i}"}) for i in (1, 2, 3)]
    rows += [Record(f"q{i}", "x", f"q{i}") for i in (1, 2, 3)]
    family = {r.digest: r for r in rows}
    layers, edges = _layers("r", family, {})
    layers[2].sort(key=lambda b: b.key)
    below = {e.path[0]: [e.path[1]] for e in edges}
    assert _crossings(layers, below) == 3
    _order(layers, edges)
    assert _crossings(layers, below) == 0


def test_the_picture_is_whole_and_escaped(diamond: Family) -> None:
    text = svg("dddd", diamond, {"cccc": "c@7"})
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    words = [t.text for t in root.iter(f"{space}text")]
    assert {"a", "b <1>", "c@7", "d", "f.jsonl", "m:f"} <= set(words)
    assert words.count("base_model") == 3
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in list(root.iter(f"{space}rect"))[1:]:
        assert 0 <= float(rect.attrib["x"]) <= float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert 0 <= float(rect.attrib["y"]) <= float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_a_forged_circle_of_ancestors_does_not_loop_forever() -> None:
    family = {d: Record(d, "x", d, parents={"up": u}) for d, u in (("a", "b"), ("b", "a"))}
    assert svg("a", family, {})
    assert tree("a", family, {})
    assert Box("x", 0).width == 12
