"""Run: seeds, metrics, logs, and when to log, save and stop."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.errors import Interrupted
from accord.runtime.run import Run, StopSignal, console, peak_rss_mb
from accord.runtime.seeds import derive, generator


def make(tmp_path: Path, **given: Any) -> Run:
    settings = {"seed": 0, "log_every": 4, "save_every": 5, **given}
    return Run("sft", tmp_path / "out" / "sft", tmp_path / "logs" / "sft", **settings)


def rows(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with make(tmp_path) as made:
        yield made


# ------------------------------------------------------------------ randomness
def test_a_run_derives_from_its_own_seed(tmp_path: Path) -> None:
    with make(tmp_path, seed=3) as run:
        assert run.derive("a", 1, 2) == derive(3, "a", 1, 2)
        drawn, expected = run.generator("a", 1), generator(3, "a", 1)
    assert torch.equal(torch.rand(3, generator=drawn), torch.rand(3, generator=expected))


# ------------------------------------------------------------------ steps
def test_metrics_are_written_at_the_cadence_and_at_both_ends(run: Run) -> None:
    run.begin(10)
    for step in range(10):
        run.tick({"loss": float(step)})
    assert [(row["step"], row["loss"]) for row in rows(run)] == [(1, 0.0), (4, 3.0), (8, 7.0), (10, 9.0)]


def test_records_carry_the_step_and_their_prefix(run: Run) -> None:
    run.begin(3)
    run.tick({"loss": 1.0})
    run.record({"kl": torch.tensor(0.5)}, prefix="rollout/")  # type: ignore[dict-item]
    assert rows(run) == [{"step": 1, "loss": 1.0}, {"step": 1, "rollout/kl": 0.5}]
    log = (run.logs / "sft.log").read_text()
    assert "step 1/3  loss 1\n" in log
    assert "step 1/3  rollout/kl 0.5\n" in log
    assert list(run.logs.glob("events.out.tfevents.*"))


def test_it_saves_at_the_cadence(run: Run) -> None:
    run.begin(20)
    saved = []
    for _ in range(20):
        run.tick({})
        if run.should_save:
            saved.append(run.step)
    assert saved == [5, 10, 15, 20]


def test_going_on_drops_what_will_be_done_again(tmp_path: Path) -> None:
    """State saved at step 4, killed after step 6: the lines of 5 and 6 are written anew, once."""
    with make(tmp_path, log_every=1) as first:
        first.begin(8)
        for step in range(6):
            if step % 2 == 0:
                first.record({"kl": step / 2}, "rollout/")
            first.tick({"loss": float(step), "learning_rate": 0.1})
        first.say("before")
    with make(tmp_path, log_every=1, resume=True) as second:
        second.begin(8, step=4)
        assert second.step == 4
        for step in range(4, 8):
            if step % 2 == 0:
                second.record({"kl": step / 2}, "rollout/")
            second.tick({"loss": float(step), "learning_rate": 0.1})
    with make(tmp_path / "whole", log_every=1) as whole:
        whole.begin(8)
        for step in range(8):
            if step % 2 == 0:
                whole.record({"kl": step / 2}, "rollout/")
            whole.tick({"loss": float(step), "learning_rate": 0.1})
    assert rows(second) == rows(whole)
    assert "before" in (second.logs / "sft.log").read_text()


def test_starting_anew_forgets(tmp_path: Path) -> None:
    for _ in range(2):
        with make(tmp_path, log_every=1) as run:
            run.begin(2)
            run.tick({"loss": 1.0})
            run.say("said")
    assert len(rows(run)) == 1
    assert (run.logs / "sft.log").read_text().count("said") == 1
    assert len(list(run.logs.glob("events.out.tfevents.*"))) == 1


def test_the_plan_is_on_the_screen_and_in_the_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan({"model": "a [big] one", "steps": "3"})
    shown = capsys.readouterr().out
    assert "\n  model  a [big] one\n  steps  3\n" in shown  # brackets are words, no markup
    assert "a [big] one" in (run.logs / "sft.log").read_text()


# ------------------------------------------------------------------ stopping
def test_the_first_signal_asks_and_the_second_stops(run: Run) -> None:
    run.begin(9)
    run.tick({})
    run.check_stop()
    assert not run.should_save
    signal.raise_signal(signal.SIGINT)
    assert run.stop.raised
    assert run.should_save  # so that the state is saved before check_stop ends it
    with pytest.raises(Interrupted, match="sft: stopped at step 1 of 9; the state is saved"):
        run.check_stop()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_is_told_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in the middle of a print, or of an import that a print needs: printing there breaks both."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(console, "print", lambda *text: threads.append(threading.current_thread()))
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_sigterm_asks_as_well() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.raised


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_it_works_in_a_thread(tmp_path: Path) -> None:
    """Only the main thread may set handlers; elsewhere a run is simply not stoppable by signals."""
    from concurrent.futures import ThreadPoolExecutor

    def work() -> int:
        with make(tmp_path) as run:
            run.begin(1)
            run.tick({"loss": 1.0})
            return run.step

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 1


def test_log_files_are_closed(tmp_path: Path) -> None:
    import logging

    with make(tmp_path) as run:
        logger = logging.getLogger(f"accord.log.sft.{id(run)}")
        assert logger.handlers
    assert not logger.handlers


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert 50 < peak_rss_mb() < 50_000
