"""From rows of metrics to lines: one metric's points, smoothed, thinned out, averaged over seeds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_POINTS = 400  # of a line; a panel is 244 pixels wide


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one metric in one run, or the mean over several, with their range."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    band: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def points(rows: Sequence[Mapping[str, float]], metric: str, x: str = "step") -> Series:
    """The values of a metric over ``x``, which is taken from the newest row that has it; of equal x the last counts."""
    found: dict[float, float] = {}
    place = math.nan
    for row in rows:
        place = row.get(x, place)
        if metric in row and math.isfinite(place):
            found.pop(place, None)
            found[place] = row[metric]
    pairs = sorted(found.items())
    return Series(tuple(p for p, _ in pairs), tuple(v for _, v in pairs))


def smooth(series: Series, weight: float) -> Series:
    """Exponential moving average, divided by the sum of its weights, so that the start is not drawn to zero.

    ``weight`` of the past, 0 ≤ weight < 1, as TensorBoard's smoothing.  Values that are not finite stay and count nothing.
    """
    total = mass = 0.0
    ys = []
    for y in series.ys:
        if math.isfinite(y):
            total, mass = weight * total + (1 - weight) * y, weight * mass + (1 - weight)
            y = total / mass
        ys.append(y)
    return Series(series.xs, tuple(ys))


def mean(several: Sequence[Series]) -> Series:
    """Mean of several runs with the lowest and highest of them, over the x that all of them cover, interpolated linearly."""
    several = [s for s in several if s.xs]
    if len(several) == 1:
        return several[0]
    start, end = max(s.xs[0] for s in several), min(s.xs[-1] for s in several)
    xs = sorted({x for s in several for x in s.xs if start <= x <= end})
    columns = [[_at(s, x) for s in several] for x in xs]
    low, high = tuple(map(min, columns)), tuple(map(max, columns))
    return Series(tuple(xs), tuple(sum(c) / len(c) for c in columns), (low, high))


def _at(series: Series, x: float) -> float:
    i = bisect_left(series.xs, x)
    if series.xs[i] == x:
        return series.ys[i]
    (a, b), (c, d) = series.xs[i - 1 : i + 1], series.ys[i - 1 : i + 1]
    return c + (d - c) * (x - a) / (b - a)


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """At most about ``most`` points: the first, the last, and the lowest and highest of each stretch, so that no peak is lost."""
    count = len(series.xs)
    if count <= most:
        return series
    size = math.ceil(count / (most / 2))
    kept = {0, count - 1}
    for start in range(0, count, size):
        stretch = range(start, min(start + size, count))
        kept |= {min(stretch, key=lambda i: series.ys[i]), max(stretch, key=lambda i: series.ys[i])}
    chosen = sorted(kept)

    def pick(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(values[i] for i in chosen)

    return Series(
        pick(series.xs), pick(series.ys), (pick(series.band[0]), pick(series.band[1])) if series.band else None
    )
