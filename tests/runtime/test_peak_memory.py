"""The peak of resident memory."""

from __future__ import annotations

from accord.runtime.peak_memory import peak_rss_mb


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert 50 < peak_rss_mb() < 50_000
