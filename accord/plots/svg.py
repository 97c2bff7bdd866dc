"""Lines in small panels as the text of an SVG picture, on a white background, readable in black and white too.

Pure functions of numbers.  A value that is not finite, or above 1e300, interrupts its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d4a99", "#555555")
"""Okabe & Ito's, which people with color blindness tell apart; the yellow, which is faint on white, is left out."""
DASHES = ("", "5 3", "1.5 2.5", "8 3 1.5 3")
PANEL, PLOT = (316, 208), (244, 128)  # width and height of a panel, and of the area with the lines in it
LEFT, TOP = 60, 36  # of that area in its panel
MARGIN, COLUMNS, NARROWEST = 12, 3, 480
CHARACTER, SMALL = 6.2, 5.2  # mean width at 11 and at 10 pixels, rounded up
OVER = 0.02  # of the distance of two ticks that a line may pass the last of them, as a KL of -1e-7 does
HALO = 'paint-order="stroke" stroke="white" stroke-width="3"'  # so that text on a line can be read
LARGEST = 1e300
TICKS = 4  # about so many on an axis


Place = Callable[[float, float], tuple[float, float]]
"""From a point's numbers to its pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: ``color`` and ``dash`` count through the tables above; a line of one point is a marker with its value.

    ``label`` stands in the picture's legend, ``part`` in its panel's, each where there are several.
    """

    label: str
    part: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    dash: int = 0
    faint: bool = False
    """Drawn under a smoothed line, without an entry in a legend."""
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper values at ``xs``."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]


def picture(title: str, panels: Sequence[Panel], note: str = "") -> str:
    """The SVG text of panels in rows of at most three, under a title, a note and one legend."""
    columns = max(1, min(COLUMNS, len(panels)))
    width = max(NARROWEST, columns * PANEL[0] + 2 * MARGIN)
    legend, legend_height = _legend(panels, width)
    head = 34 + (16 if note else 0)
    rows = -(-len(panels) // columns)
    height = head + legend_height + rows * PANEL[1] + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="11" role="img">',
        f"<title>{_text(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        _label(MARGIN + 4, 24, _clipped(title, width * 0.7), 'font-size="15" font-weight="bold" fill="#222"'),
    ]
    if note:
        parts.append(_label(MARGIN + 4, 41, _clipped(note, width - 30), 'fill="#666"'))
    parts += [f'<g transform="translate({MARGIN},{head})">', *legend, "</g>"]
    ends = {
        panel.x_label: _range([x for p in panels if p.x_label == panel.x_label for n in p.lines for x in n.xs])
        for panel in panels
    }
    for i, panel in enumerate(panels):
        x, y = MARGIN + i % columns * PANEL[0], head + legend_height + i // columns * PANEL[1]
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel, *ends[panel.x_label]), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def is_shown(value: float) -> bool:
    """Whether a value can be drawn: finite, and so small that differences are finite too."""
    return abs(value) <= LARGEST  # false of NaN


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from one at or below ``low`` to one at or above ``high``."""
    if not high > low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    step = _step((high - low) / count)
    first, last = math.floor(low / step + OVER), math.ceil(high / step - OVER)
    return [n * step for n in range(first, last + 1)]


def _step(least: float) -> float:
    """The smallest round number that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def number(value: float) -> str:
    """A short form of a number: 0.25, 1,500, 20k, 3e-5."""
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / min(unit, 1e3 if letter == 'k' else unit):.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


# ------------------------------------------------------------------ drawing
def _text(words: str) -> str:
    """Text for XML, which has no control characters and no halves of surrogate pairs."""
    shown = "".join(
        c if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else "\ufffd" for c in words
    )
    return escape(shown)


def _label(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{_text(words)}</text>'


def _clipped(words: str, width: float) -> str:
    most = max(4, int(width / CHARACTER))
    return words if len(words) <= most else words[: most - 1] + "…"


def _stroke(line: Line) -> str:
    dash = DASHES[line.dash % len(DASHES)]
    return f'stroke="{COLORS[line.color % len(COLORS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _legend(panels: Sequence[Panel], width: float) -> tuple[list[str], int]:
    """The labels with their colors, and the height that they take; none where there is one label alone."""
    entries = {n.label: n.color for panel in panels for n in panel.lines if not n.faint}
    if len(entries) < 2:
        return [], 0
    parts, x, y = [], 4.0, 12
    for label, color in entries.items():
        shown = _clipped(label, width - 60)
        room = 30 + len(shown) * CHARACTER + 14
        if x > 4 and x + room > width - 2 * MARGIN:
            x, y = 4.0, y + 16
        parts.append(f'<path d="M{x:.1f},{y - 4} h22" stroke="{COLORS[color % len(COLORS)]}" stroke-width="3"/>')
        parts.append(_label(x + 28, y, shown, 'fill="#222"'))
        x += room
    return parts, y + 6


def _key(lines: Sequence[Line]) -> tuple[list[str], float]:
    """What the lines of one panel are, above its right end, and the width that this takes; none where all are the same."""
    entries = {n.part: n for n in lines if not n.faint}
    if len(entries) < 2:
        return [], 0.0
    gray = len({n.color for n in entries.values()}) == 1
    taken = sum(30 + len(part) * SMALL for part in entries)
    x, parts = LEFT + max(0.0, PLOT[0] - taken), []
    for part, line in entries.items():
        stroke = _stroke(replace(line, color=len(COLORS) - 1) if gray else line)
        parts.append(f'<path d="M{x:.1f},26.5 h16" fill="none" {stroke} stroke-width="2"/>')
        parts.append(_label(x + 20, 30, part, 'font-size="10" fill="#222"'))
        x += 30 + len(part) * SMALL
    return parts, taken


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if is_shown(v)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _panel(panel: Panel, low: float, high: float) -> Iterator[str]:
    """The parts of one panel, from its own upper left corner on; ``low`` and ``high`` are the ends of the x axis."""
    across = ticks(low, high)
    seen = [y for line in panel.lines for ys in (line.ys, *(line.band or ())) for y in ys]
    up = ticks(*_range(seen))
    left, right = (low, high) if high > low else (across[0], across[-1])
    scale_x, scale_y = PLOT[0] / (right - left), PLOT[1] / (up[-1] - up[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - left) * scale_x, TOP + PLOT[1] - (y - up[0]) * scale_y

    yield _label(LEFT, 16, _clipped(panel.title, PLOT[0]), 'font-size="12" font-weight="bold" fill="#222"')
    key, taken = _key(panel.lines)
    if PLOT[0] - taken > 30:
        yield _label(LEFT, 30, _clipped(panel.y_label, PLOT[0] - taken), 'font-size="10" fill="#666"')
    yield from key
    for y in up:
        _, v = place(left, y)
        yield f'<path d="M{LEFT},{v:.1f} h{PLOT[0]}" stroke="#e4e4e4" fill="none"/>'
        yield _label(LEFT - 6, v + 3.5, number(y), 'font-size="10" fill="#444" text-anchor="end"')
    for x in (x for x in across if left <= x <= right):
        u, _ = place(x, up[0])
        yield f'<path d="M{u:.1f},{TOP + PLOT[1]} v4" stroke="#888" fill="none"/>'
        yield _label(u, TOP + PLOT[1] + 15, number(x), 'font-size="10" fill="#444" text-anchor="middle"')
    yield f'<path d="M{LEFT},{TOP + PLOT[1]} h{PLOT[0]}" stroke="#888" fill="none"/>'
    yield _label(
        LEFT + PLOT[0] / 2, TOP + PLOT[1] + 28, panel.x_label, 'font-size="10" fill="#666" text-anchor="middle"'
    )
    for line in panel.lines:
        if line.band:
            yield _band(line, place)
    for line in sorted(panel.lines, key=lambda n: not n.faint):
        yield from _line(line, place)
    yield from _values(panel.lines, place)


def _runs(line: Line) -> Iterator[list[tuple[float, float]]]:
    """The stretches of a line between values that are not finite."""
    stretch: list[tuple[float, float]] = []
    for x, y in zip(line.xs, line.ys, strict=True):
        if is_shown(x) and is_shown(y):
            stretch.append((x, y))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _line(line: Line, place: Place) -> Iterator[str]:
    color = COLORS[line.color % len(COLORS)]
    for stretch in _runs(line):
        points = [place(x, y) for x, y in stretch]
        if len(points) == 1:
            u, v = points[0]
            yield f'<circle cx="{u:.1f}" cy="{v:.1f}" r="3" fill="{color}"><title>{_text(line.label)}</title></circle>'
            continue
        way = "M" + " L".join(f"{u:.1f},{v:.1f}" for u, v in points)
        style = 'stroke-width="1" stroke-opacity="0.25"' if line.faint else 'stroke-width="1.8"'
        name = f"<title>{_text(line.label)}</title>"
        yield f'<path d="{way}" fill="none" {_stroke(line)} {style} stroke-linejoin="round">{name}</path>'


def _values(lines: Sequence[Line], place: Place) -> Iterator[str]:
    """The values of lines of one point, each at least a line of text from the next."""
    single = [n for n in lines if len(n.xs) == 1 and is_shown(n.ys[0])]
    lowest = math.inf
    for line in sorted(single, key=lambda n: n.ys[0]):
        u, v = place(line.xs[0], line.ys[0])
        lowest = min(v - 5, lowest - 11)
        anchor, x = ("end", u - 6) if u > LEFT + PLOT[0] / 2 else ("start", u + 6)
        style = f'font-size="10" fill="{COLORS[line.color % len(COLORS)]}" text-anchor="{anchor}" {HALO}'
        yield _label(x, lowest, number(line.ys[0]), style)


def _band(line: Line, place: Place) -> str:
    assert line.band
    known = [row for row in zip(line.xs, *line.band, strict=True) if all(map(is_shown, row))]
    way = [place(x, low) for x, low, _ in known] + [place(x, high) for x, _, high in reversed(known)]
    return (
        f'<path d="M{" L".join(f"{u:.1f},{v:.1f}" for u, v in way)} Z" fill="{COLORS[line.color % len(COLORS)]}"'
        ' fill-opacity="0.15"/>'
    )
