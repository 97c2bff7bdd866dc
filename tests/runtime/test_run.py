"""Run: seeds, metrics, logs, and when to log, save and stop."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.errors import Interrupted
from accord.runtime.run import Ranks, Run, StageIdentity
from accord.runtime.seeds import derive, generator

Make = Callable[..., Run]


@pytest.fixture
def make(open_run: Make) -> Make:
    return partial(open_run, "sft", log_every=4, save_every=5)


def rows(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.logs / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def run(make: Make) -> Iterator[Run]:
    with make() as made:
        yield made


# ------------------------------------------------------------------ randomness
def test_a_run_derives_from_its_own_seed(make: Make) -> None:
    with make(seed=3) as run:
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


def test_a_run_saves_at_its_cadence(run: Run) -> None:
    run.begin(20)
    saved = []
    for _ in range(20):
        run.tick({})
        if run.should_save:
            saved.append(run.step)
    assert saved == [5, 10, 15, 20]


def test_resuming_drops_the_log_lines_of_steps_that_run_again(make: Make, tmp_path: Path) -> None:
    """State saved at step 4, killed after step 6: the lines of 5 and 6 are written once more, not twice."""
    with make(log_every=1) as first:
        first.begin(8)
        for step in range(6):
            if step % 2 == 0:
                first.record({"kl": step / 2}, "rollout/")
            first.tick({"loss": float(step), "learning_rate": 0.1})
        first.say("before")
    with make(log_every=1, resume=True) as second:
        second.begin(8, step=4)
        assert second.step == 4
        for step in range(4, 8):
            if step % 2 == 0:
                second.record({"kl": step / 2}, "rollout/")
            second.tick({"loss": float(step), "learning_rate": 0.1})
    with make(folder=tmp_path / "whole", log_every=1) as whole:
        whole.begin(8)
        for step in range(8):
            if step % 2 == 0:
                whole.record({"kl": step / 2}, "rollout/")
            whole.tick({"loss": float(step), "learning_rate": 0.1})
    assert rows(second) == rows(whole)
    assert "before" in (second.logs / "sft.log").read_text()


def test_starting_from_the_beginning_clears_the_log(make: Make) -> None:
    for _ in range(2):
        with make(log_every=1) as run:
            run.begin(2)
            run.tick({"loss": 1.0})
            run.say("said")
    assert len(rows(run)) == 1
    assert (run.logs / "sft.log").read_text().count("said") == 1
    assert len(list(run.logs.glob("events.out.tfevents.*"))) == 1


def test_the_plan_is_on_the_screen_and_in_the_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan({"model": "a [big] one", "steps": "3"})
    shown = capsys.readouterr().out
    assert "\n  model  a [big] one\n  steps  3\n" in shown  # brackets are text, not markup
    assert not run.logs.exists()  # nothing is written until the stage has checked everything
    run.open_folders()
    assert "a [big] one" in (run.logs / "sft.log").read_text()


# ------------------------------------------------------------------ the first write
def test_a_run_that_never_opens_its_folders_leaves_them_alone(make: Make) -> None:
    with make() as first:
        first.begin(1)
        first.tick({"loss": 1.0})
        first.say("said")
    before = {p.name: p.read_bytes() for p in first.logs.iterdir()}
    with make() as second:
        second.say("checking")
        second.plan({"model": "small"})
    assert {p.name: p.read_bytes() for p in first.logs.iterdir()} == before


def test_a_run_that_is_stopped_before_its_first_step_opens_nothing(make: Make) -> None:
    opened: list[int] = []
    with make(before_first_write=lambda: opened.append(1)) as run:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="sft: stopped before its first step; nothing was changed"):
            run.begin(9)
    assert (opened, run.directory.exists(), run.logs.exists()) == ([], False, False)


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


def test_a_run_works_in_a_thread(make: Make) -> None:
    """Only the main thread may set handlers; elsewhere a run is simply not stoppable by signals."""
    from concurrent.futures import ThreadPoolExecutor

    def work() -> int:
        with make() as run:
            run.begin(1)
            run.tick({"loss": 1.0})
            return run.step

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 1


def test_log_files_are_closed(make: Make) -> None:
    import logging

    with make() as run:
        logger = logging.getLogger(f"accord.log.sft.{id(run)}")
        assert logger.handlers
    assert not logger.handlers


# ------------------------------------------------------------------ what it is
def test_a_run_knows_its_stage_from_the_start(make: Make) -> None:
    with make(key="k", parents={"data.train": "d"}, sources={"data.train": "p"}, settings={"seed": 0}) as run:
        assert (run.key, run.parents, run.sources) == ("k", {"data.train": "d"}, {"data.train": "p"})
        assert run.settings == {"seed": 0}


def test_a_stage_without_a_state_says_so_when_it_is_stopped(run: Run) -> None:
    run.begin(9, resumable=False)
    run.stop.raised = True
    with pytest.raises(Interrupted, match="this stage saves no state and will start again"):
        run.check_stop()


def test_metrics_that_are_not_finite_are_null(run: Run) -> None:
    run.record({"loss": float("nan"), "kl": float("inf"), "score": 0.5})
    assert (run.logs / "metrics.jsonl").read_text() == '{"step": 0, "loss": null, "kl": null, "score": 0.5}\n'


def test_tags_of_tensorboard_begin_with_the_stage(run: Run) -> None:
    run.record({"kl": 0.5}, prefix="rollout/")
    run.__exit__()
    (path,) = run.logs.glob("events.out.tfevents.*")
    assert [(e.summary.value[0].tag, e.summary.value[0].simple_value) for e in events(path)] == [
        ("sft/rollout/kl", 0.5)
    ]


def events(path: Path) -> list[Any]:
    """The events with values in TensorBoard's file: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return [event for event in found if event.summary.value]


def test_without_tensorboards_writer_logs_are_whole_and_it_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # import of it fails as where it is not installed
    run.begin(5)
    for _ in range(5):
        run.tick({"loss": 1.0})
    assert [row["step"] for row in rows(run)] == [1, 4, 5]
    assert "step 5/5  loss 1\n" in (run.logs / "sft.log").read_text()
    said = capsys.readouterr().out
    assert said.count("no events for TensorBoard: tensorboardX is not installed (pip install ") == 1
    assert "[tensorboard]" in said
    assert not list(run.logs.glob("events.*"))


def test_curves_are_drawn_when_the_state_is_saved_and_whole_at_the_end(run: Run) -> None:
    picture = run.logs / "sft.svg"
    run.begin(10)
    for _ in range(4):
        run.tick({"loss": float(run.step)})
    run.draw()
    assert "after step 4<" in picture.read_text()
    for _ in range(6):
        run.tick({"loss": float(run.step)})
    run.record({"loss": 0.25}, prefix="heldout/")
    run.write_optional()
    text = picture.read_text()
    assert "after step 10<" in text
    assert ">held out</text>" in text
    assert ">0.25</text>" in text


def test_a_run_from_the_beginning_removes_the_curves_of_the_last_one(make: Make) -> None:
    with make() as run:
        run.begin(4)
        run.tick({"loss": 1.0})
        run.draw()
    assert (run.logs / "sft.svg").exists()
    with make() as run:
        run.begin(4)
        assert not (run.logs / "sft.svg").exists()


def test_a_picture_that_cannot_be_written_costs_nothing_else(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.begin(4)
    (run.logs / "sft.svg").mkdir()
    for _ in range(4):
        run.tick({"loss": float(run.step)})
        run.draw()
    assert [row["step"] for row in rows(run)] == [1, 4]
    assert capsys.readouterr().out.count("sft.svg was omitted: ") == 1


def test_of_several_ranks_only_the_one_that_writes_draws(tmp_path: Path) -> None:
    identity = StageIdentity("sft", tmp_path / "sft", tmp_path / "logs", 0)
    with Run(identity, 1, 1, ranks=Ranks(False, lambda flag: flag)) as run:
        run.begin(1)
        run.tick({"loss": 1.0})
        run.draw()
        run.write_optional()
        assert not run.logs.exists()


def test_without_tensorboard_metrics_are_written_and_it_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("tensorboardX.SummaryWriter", fails)
    for _ in range(3):
        run.record({"loss": 1.0})
    assert len(rows(run)) == 3
    assert capsys.readouterr().out.count("the rest of TensorBoard's events was omitted: [Errno 13]") == 1


def test_optional_files_are_written_later_and_one_that_fails_costs_no_other(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    run.write_later("a", lambda: written.append("a"))
    run.write_later("b", lambda: 1 / 0)
    run.write_later("c", lambda: written.append("c"))
    assert written == []
    run.write_optional()
    run.write_optional()
    assert written == ["a", "c"]
    assert "b was omitted: division by zero" in capsys.readouterr().out
