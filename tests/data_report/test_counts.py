"""Counts of parts of a file add up to those of the whole; percentiles and histograms."""

from __future__ import annotations

from collections import Counter

from accord.data_report.counts import Counts, coarse, histogram, percentile


def count(numbers: range) -> Counts:
    counts = Counts()
    for n in numbers:
        counts.rows += 1
        counts.add_length("row", n)
        counts.add_hazards(n, {"ties": f"row {n}"} if n % 3 == 0 else {})
    return counts


def test_parts_add_up_to_the_whole() -> None:
    parts, whole = count(range(10)), count(range(30))
    parts.merge(count(range(10, 30)))
    assert parts == whole
    assert whole.hazards["ties"].count == 10
    assert whole.hazards["ties"].rows == [0, 3, 6, 9, 12]
    assert whole.hazards["ties"].example == "row 0"


def test_percentiles_are_by_nearest_rank() -> None:
    lengths = Counter({10: 50, 20: 49, 1000: 1})
    assert [percentile(lengths, p) for p in (50, 51, 99, 100)] == [10, 20, 20, 1000]
    assert percentile(Counter(), 50) == 0


def test_a_histogram_counts_each_length_once_and_ends_with_the_outliers() -> None:
    lengths = Counter(dict.fromkeys(range(17, 180), 2)) + Counter({90_000: 1})
    bins = histogram(lengths)
    assert bins[0][0] == 0
    assert bins[-1] == (200, 90_000, 1)
    assert sum(n for _, _, n in bins) == sum(lengths.values())
    assert len(bins) <= 10


def test_very_long_lengths_take_no_more_memory_than_others() -> None:
    assert len({coarse(n) for n in range(1_000_000, 2_000_000, 997)}) <= 101
    assert coarse(60_001) == 60_001
