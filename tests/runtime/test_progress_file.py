"""progress.json: how far a stage is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.runtime.progress_file import ProgressFile
from accord.runtime.run import Run


@pytest.fixture
def progress(tmp_path: Path) -> Iterator[ProgressFile]:
    """Of a stage with ten steps that resumes after its third."""
    file = ProgressFile(tmp_path, 3, 10)
    yield file
    file.close()


def read(file: ProgressFile) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.path.read_text(encoding="utf-8"))
    return found


def test_it_shows_the_step_and_the_metrics_of_all_updates(progress: ProgressFile) -> None:
    assert [read(progress)[key] for key in ("first", "step", "total", "metrics")] == [3, 3, 10, {}]
    progress.update(4, {"loss": 1.0, "kl": 0.5}, last=True)
    progress.update(5, {"kl": 0.25}, last=True)
    assert [read(progress)[key] for key in ("first", "step", "total")] == [3, 5, 10]
    assert read(progress)["metrics"] == {"loss": 1.0, "kl": 0.25}


def test_within_half_a_second_only_the_last_update_is_written(progress: ProgressFile) -> None:
    for step in (4, 5):
        progress.update(step, {})
    assert read(progress)["step"] == 4
    progress.update(6, {}, last=True)
    assert read(progress)["step"] == 6


def test_a_shorter_text_leaves_nothing_of_a_longer_one(progress: ProgressFile) -> None:
    progress.update(4, {f"figure_{i}": 1 / 3 for i in range(60)}, last=True)
    progress.metrics.clear()
    progress.update(5, {"loss": 1.0}, last=True)
    assert read(progress)["metrics"] == {"loss": 1.0}
    assert progress.path.stat().st_size == ProgressFile.LENGTH


def test_a_run_writes_its_progress_at_most_twice_a_second(open_run: Callable[..., Run]) -> None:
    with open_run("sft") as run:
        run.begin(2000)
        path, seen = run.directory / "progress.json", set()
        until = time.monotonic() + 1.2
        while time.monotonic() < until and run.step < 2000:
            run.tick({"loss": 1.0})
            seen.add(json.loads(path.read_text())["step"])
        assert len(seen) <= 4
        run.stop.raised = True
        with pytest.raises(Exception, match="stopped at step"):
            run.check_stop()
        found = json.loads(path.read_text())
        assert (found["step"], found["total"], found["first"]) == (run.step, 2000, 0)
