"""A lineage as an SVG picture in layers: ancestors above, the model below.

Layers are longest distances to the model, long edges pass through points in the layers between, the order
within a layer follows the barycenters of neighbors (Sugiyama, Tagawa & Toda 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from accord.registry.family import Family, Record
from accord.registry.lineage import COLORS, lines, title

TITLE, TEXT = 8.2, 6.9  # width of a character at 13 and 11 pixels, rounded up
LINE, GAP, ROW, MARGIN = 16, 28, 64, 24
SWEEPS = 24


@dataclass(slots=True)
class Box:
    """A node, or a point that a long edge passes through (no lines)."""

    key: str
    layer: int
    text: list[str] = field(default_factory=list)
    form: str = "model"
    roles: int = 0
    x: float = 0.0  # of its center
    y: float = 0.0  # of its top
    room: float = 0.0  # height that a long edge passes vertically

    @property
    def width(self) -> float:
        if not self.text:
            return 12.0
        widest = max(len(self.text[0]) * TITLE, *(len(line) * TEXT for line in self.text[1:]), 90.0)
        return max(widest + 24, 96.0 * self.roles)

    @property
    def height(self) -> float:
        return LINE * len(self.text) + 16 if self.text else 0.0


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge from a parent through points to its child."""

    path: tuple[str, ...]
    role: str


def svg(root: str, family: Family, labels: Mapping[str, str]) -> str:
    """The SVG text of the lineage of ``root``."""
    layers, edges = _layers(root, family, labels)
    boxes = {box.key: box for layer in layers for box in layer}
    _order(layers, edges)
    _place(layers, edges)
    width = max(box.x + box.width / 2 for box in boxes.values()) + MARGIN
    height = max(box.y + box.height for box in boxes.values()) + MARGIN
    inner = [*_drawn_edges(boxes, edges), *(part for box in boxes.values() if box.text for part in _drawn(box))]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="11">'
    )
    name = escape(boxes[root].text[0])
    return "\n".join(
        [
            head,
            f"<title>Lineage of {name}</title>",
            '<rect width="100%" height="100%" fill="white"/>',
            *inner,
            "</svg>\n",
        ]
    )


# ------------------------------------------------------------------ layout
def _layers(root: str, family: Family, labels: Mapping[str, str]) -> tuple[list[list[Box]], list[Edge]]:
    depth: dict[str, int] = {}

    def descend(digest: str, level: int, way: tuple[str, ...]) -> None:
        if digest in way or depth.get(digest, -1) >= level:  # a cycle, only possible in a forged record
            return
        depth[digest] = level
        for parent in parents_of(family, digest).values():
            descend(parent, level + 1, (*way, digest))

    descend(root, 0, ())
    layers: list[list[Box]] = [[] for _ in range(max(depth.values()) + 1)]
    edges: list[Edge] = []
    for digest, level in depth.items():
        record = family.get(digest, Record(digest[:8], "unknown", digest))
        above = parents_of(family, digest)
        layers[level].append(Box(digest, level, [title(record, labels), *lines(record)], record.form, len(above)))
        for role, parent in above.items():
            if depth[parent] <= level:
                continue
            way = [f"{parent}>{digest}>{role}>{n}" for n in range(depth[parent] - 1, level, -1)]
            for n, key in zip(range(depth[parent] - 1, level, -1), way, strict=True):
                layers[n].append(Box(key, n))
            edges.append(Edge((parent, *way, digest), role))
    return layers, edges


def parents_of(family: Family, digest: str) -> Mapping[str, str]:
    return family[digest].parents if digest in family else {}


def _neighbors(edges: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Above and below each box."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for edge in edges:
        for upper, lower in pairwise(edge.path):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    return above, below


def _order(layers: list[list[Box]], edges: Sequence[Edge]) -> None:
    """Sorts each layer by the mean place of its neighbors, downwards and upwards in turn, and keeps the best seen."""
    above, below = _neighbors(edges)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        near, order = (below, range(1, len(layers))) if sweep % 2 == 0 else (above, range(len(layers) - 2, -1, -1))
        for n in order:
            place = {box.key: i / max(1, len(layer) - 1) for layer in layers for i, box in enumerate(layer)}
            layers[n].sort(key=lambda box: _mean([place[k] for k in near.get(box.key, [])], place[box.key]))
        if (crossings := _crossings(layers, below)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(layers: Sequence[Sequence[Box]], below: Mapping[str, list[str]]) -> int:
    place = {box.key: i for layer in layers for i, box in enumerate(layer)}
    count = 0
    for layer in layers:
        pairs = [(place[box.key], place[lower]) for box in layer for lower in below.get(box.key, [])]
        count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(pairs) for b in pairs[:i])
    return count


def _place(layers: list[list[Box]], edges: Sequence[Edge]) -> None:
    """Sets x and y: each box as near to its neighbors' mean as the ones beside it let it."""
    above, below = _neighbors(edges)
    boxes = {box.key: box for layer in layers for box in layer}
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS):
        near = (below, above)[sweep % 2]
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            _spread(layer, [_mean([boxes[k].x for k in near.get(box.key, [])], box.x) for box in layer])
    y = float(MARGIN)
    for layer in reversed(layers):
        tallest = max(box.height for box in layer)
        for box in layer:
            box.y = y + (tallest - box.height if box.text else 0.0)  # feet on one line
            box.room = 0.0 if box.text else tallest
        y += tallest + ROW
    left = min(box.x - box.width / 2 for box in boxes.values()) - MARGIN
    for box in boxes.values():
        box.x -= left


def _spread(layer: Sequence[Box], wanted: Sequence[float]) -> None:
    """The mean of pushing to the right and of pushing to the left: both keep the distance, so their mean does."""
    apart = [(a.width + b.width) / 2 + GAP for a, b in pairwise(layer)]
    right, left = list(wanted), list(wanted)
    for i, distance in enumerate(apart):
        right[i + 1] = max(right[i + 1], right[i] + distance)
    for i in range(len(apart) - 1, -1, -1):
        left[i] = min(left[i], left[i + 1] - apart[i])
    for box, a, b in zip(layer, right, left, strict=True):
        box.x = (a + b) / 2


# ------------------------------------------------------------------ drawing
def _drawn(box: Box) -> list[str]:
    fill, line = COLORS[box.form]
    left = box.x - box.width / 2
    parts = [
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="6" fill="{fill}"'
        f' stroke="{line}"/>'
    ]
    for i, text in enumerate(box.text):
        style = f' font-size="13" font-weight="bold" fill="{line}"' if i == 0 else ' fill="#333"'
        parts.append(f'<text x="{left + 12:.1f}" y="{box.y + 20 + LINE * i:.1f}"{style}>{escape(text)}</text>')
    return parts


def _drawn_edges(boxes: Mapping[str, Box], edges: Sequence[Edge]) -> list[str]:
    parts = []
    for key, box in boxes.items():
        mine = sorted((e for e in edges if e.path[-1] == key), key=lambda e: boxes[e.path[-2]].x)
        for i, edge in enumerate(mine):
            port = box.x - box.width / 2 + box.width * (i + 0.5) / len(mine)
            parts += _drawn_edge([boxes[k] for k in edge.path], port, edge.role)
    return parts


def _drawn_edge(way: Sequence[Box], port: float, role: str) -> list[str]:
    """A smooth line from the foot of the first to the port on top of the last, and the role beside its end."""
    first, *between, last = way
    x, y = first.x, first.y + first.height
    path = f"M{x:.1f},{y:.1f}"
    end = last.y - 2
    for point in between:
        middle = (y + point.y) / 2
        path += f" C{x:.1f},{middle:.1f} {point.x:.1f},{middle:.1f} {point.x:.1f},{point.y:.1f} v{point.room:.1f}"
        x, y = point.x, point.y + point.room
    middle = (y + end) / 2
    path += f" C{x:.1f},{middle:.1f} {port:.1f},{middle:.1f} {port:.1f},{end:.1f}"
    short = escape(role.removeprefix("model.").removeprefix("data."))
    return [
        f'<path d="{path}" fill="none" stroke="#99a3ad" stroke-width="1.3"/>',
        f'<path d="M{port - 3.5:.1f},{end - 6:.1f} L{port:.1f},{end + 1:.1f} L{port + 3.5:.1f},{end - 6:.1f} Z" fill="#99a3ad"/>',
        f'<rect x="{port + 5:.1f}" y="{end - 15:.1f}" width="{len(short) * 5.7 + 4:.1f}" height="13" fill="white"/>'
        f'<text x="{port + 7:.1f}" y="{end - 5:.1f}" font-size="10" fill="#667">{short}</text>',
    ]
