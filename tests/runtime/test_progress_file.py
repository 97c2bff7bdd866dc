"""progress.json: how far a stage is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from accord.runtime.run import Run


def test_progress_is_written_at_most_twice_a_second_and_read_whole(open_run: Callable[..., Run]) -> None:
    with open_run("sft") as run:
        run.begin(2000)
        path, seen = run.directory / "progress.json", set()
        until = time.monotonic() + 1.2
        while time.monotonic() < until and run.step < 2000:
            run.record({f"figure_{i}": 1 / 3 for i in range(60)}, "rollout/") if run.step == 5 else None
            run.tick({"loss": 1.0})
            seen.add(json.loads(path.read_text())["step"])
        assert path.stat().st_size == 1024
        assert len(seen) <= 4
        run.stop.raised = True
        with pytest.raises(Exception, match="stopped at step"):
            run.check_stop()
        progress = json.loads(path.read_text())
        assert (progress["step"], progress["total"], progress["first"]) == (run.step, 2000, 0)
