from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest

from accord.data.files import array
from accord.data.files.array import array_rows

ROWS = [{"a": '[{"x\\\\', "n": i, "b": [{"c": None}, "ü\n"]} for i in range(50)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_rows_do_not_depend_on_where_a_piece_of_the_file_ends(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(array, "_CHUNK", chunk)
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=2), f" {json.dumps(ROWS)} \n"):
        assert list(array_rows(io.StringIO(text), "f")) == list(enumerate(ROWS, 1))


def test_memory_does_not_grow_with_the_file() -> None:
    class Endless(io.TextIOBase):
        """An array of 20 MB, written while it is read."""

        def __init__(self) -> None:
            self.parts: Iterator[str] = iter(["[", *[json.dumps({"a": "x" * 1000}) + ","] * 20_000, "{}]"])

        def read(self, size: int | None = -1) -> str:
            return "".join(part for _, part in zip(range(1000), self.parts, strict=False))

    tracemalloc.start()
    count = sum(1 for _ in array_rows(Endless(), "f"))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 8 << 20
