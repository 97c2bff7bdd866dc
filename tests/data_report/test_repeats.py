"""Rows that repeat earlier ones, exactly and, above the capacity, as an estimate."""

from __future__ import annotations

import numpy as np
import pytest

from accord.data.rows import Where
from accord.data_report.reading import Reading, read_row
from accord.data_report.repeats import NEVER, Seen, identity

HERE = Where("rows.jsonl", 1)


def add(seen: Seen, *hashes: int, first: int = 1) -> list[int]:
    return seen.add(np.array(hashes, np.uint64), np.arange(first, first + len(hashes))).tolist()


def test_a_hash_is_found_with_its_first_row_within_and_across_chunks() -> None:
    seen = Seen()
    assert add(seen, 7, 9, 7, 8, 7) == [0, 0, 1, 0, 1]
    assert add(seen, 5, 9, 5, 7, first=6) == [0, 2, 6, 1]
    assert seen.find(np.array([8, 4], np.uint64)).tolist() == [4, 0]


def test_what_is_not_compared_is_never_found() -> None:
    seen = Seen()
    assert add(seen, NEVER, NEVER) == [0, 0]
    assert add(seen, NEVER, first=3) == [0]


def test_memory_is_bounded_and_the_estimate_right_when_there_are_too_many() -> None:
    seen, chance, count = Seen(capacity=2000), np.random.default_rng(0), 0.0
    distinct = chance.integers(1, 2**64, 20_000, np.uint64)
    for start in range(0, 40_000, 250):
        part = np.array([distinct[i % 20_000] for i in range(start, start + 250)])
        weight = 1 / seen.share
        count += weight * (seen.add(part, np.arange(start + 1, start + 251)) > 0).sum()
        assert sum(len(run) for run, _ in seen._runs) <= 2000
    assert seen.share == 1 / 16
    assert count == pytest.approx(20_000, rel=0.1)


def pair(chosen: str, rejected: str, **more: object) -> Reading:
    return read_row({"prompt": "hi", "chosen": chosen, "rejected": rejected, **more}, "preferences", HERE)


def test_a_pair_with_its_replies_exchanged_is_the_other_pair() -> None:
    one, other = identity(pair("a", "b")), identity(pair("b", "a"))
    assert one.row == other.exchanged
    assert one.exchanged == other.row
    assert one.row != other.row
    assert one.prompt == other.prompt
    assert identity(pair("a", "a")).exchanged == NEVER
    assert identity(pair("a", "b", label=0.5)).exchanged == NEVER


def test_messages_with_and_without_a_call_differ() -> None:
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    turns = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **more}]
        for more in ({}, {"tool_calls": call})
    ]
    one, other = (identity(read_row({"messages": messages}, "sft", HERE)) for messages in turns)
    assert one.row != other.row
    assert one.prompt == other.prompt
