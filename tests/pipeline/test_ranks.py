"""A stage on several processes: how their ends are judged, a kill, and a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accord.config.common import Parallel
from accord.config.load import build
from accord.config.sft import SFTConfig
from accord.errors import Failed, Interrupted, UserError
from accord.pipeline.ranks import (
    DONE,
    FAILED,
    LATE,
    LOST,
    STOPPED,
    WRONG,
    Ended,
    check_ranks,
    raise_verdict,
    starts_ranks,
)
from accord.pipeline.task import stage_key
from accord.stage_kinds.table import STAGE_KINDS

pytestmark = pytest.mark.xdist_group("ranks")
KILLED = -signal.SIGKILL


def test_the_rank_that_failed_is_named_and_not_the_one_that_lost_it() -> None:
    with pytest.raises(Failed, match="rank 1 of 2: division by zero"):
        raise_verdict([Ended(LOST, "Connection closed"), Ended(FAILED, "division by zero")])
    with pytest.raises(Failed, match=r"rank 1 of 2: its process was killed \(signal 9\)"):
        raise_verdict([Ended(LOST, "Connection closed"), Ended(KILLED)])
    with pytest.raises(Failed, match="rank 1 of 2: its process was ended by SIGSEGV"):
        raise_verdict([Ended(None), Ended(-signal.SIGSEGV)])
    with pytest.raises(Failed, match=r"^rank 1 has been at step 3"):
        raise_verdict([Ended(LATE, "accord: rank 1 has been at step 3"), Ended(None)])


def test_a_mistake_that_all_ranks_report_is_the_users() -> None:
    with pytest.raises(UserError, match="no such file"):
        raise_verdict([Ended(WRONG, "no such file"), Ended(WRONG, "no such file")])
    with pytest.raises(UserError, match="locked"):
        raise_verdict([Ended(WRONG, "locked"), Ended(LOST, "closed")])  # rank 0 alone checks the folders
    with pytest.raises(Failed, match="rank 1 of 2: other files"):
        raise_verdict([Ended(LOST, "closed"), Ended(WRONG, "other files")])


def test_a_stop_is_no_failure_and_a_finished_stage_is_done() -> None:
    with pytest.raises(Interrupted, match="stopped at step 2"):
        raise_verdict([Ended(STOPPED, "s: stopped at step 2"), Ended(STOPPED, "s: stopped at step 2")])
    raise_verdict([Ended(DONE), Ended(None)])


def test_under_a_launcher_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(STAGE_KINDS["sft"].settings, {"parallel": {"nproc": 2}}, {}, "the test")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert starts_ranks(config)
    monkeypatch.setenv("RANK", "0")
    assert starts_ranks(config)  # another program's variable
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not starts_ranks(config)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    refused = {"cuda": "4 processes need 4 CUDA devices, and this machine has 2", "cuda:1": "'cuda:1' is one device"}
    for device, words in refused.items():
        with pytest.raises(UserError, match=words):
            check_ranks(SFTConfig(device=device, parallel=Parallel(nproc=4)))
    check_ranks(SFTConfig(device="cuda", parallel=Parallel(nproc=2)))
    check_ranks(SFTConfig(device="cpu", parallel=Parallel(nproc=4)))


def test_the_number_of_processes_is_outside_the_key_and_half_precision_inside() -> None:
    def key(**parallel: object) -> str:
        return stage_key("sft", build(STAGE_KINDS["sft"].settings, {"parallel": parallel}, {}, "the test"), {})

    assert key() == key(nproc=4, strategy="fsdp", cpu_offload=True)
    assert key() != key(strategy="fsdp", mixed_precision="bfloat16")


def test_settings_of_fsdp_need_it() -> None:
    with pytest.raises(UserError, match=r"cpu_offload is a setting of fsdp; add parallel\.strategy=fsdp"):
        build(STAGE_KINDS["sft"].settings, {"parallel": {"cpu_offload": True}}, {}, "the test")
    with pytest.raises(UserError, match="runs in one process"):
        build(STAGE_KINDS["pairs"].settings, {"parallel": {"nproc": 2}}, {}, "the test")


def test_a_killed_rank_ends_the_stage_which_then_resumes(tmp_path: Path, world: object) -> None:
    """One kill, one resume: the command line, both ranks, states and records together."""
    settings = {
        **{
            "model.base_model": world.mamba,
            "data.train": world.sft,
            "out": tmp_path / "out",
            "logs": tmp_path / "logs",
        },  # type: ignore[attr-defined]
        **{"device": "cpu", "parallel.nproc": 2, "save_every": 2, "log_every": 1},
        **{"training.batch_size": 4, "training.num_epochs": 400},
    }
    words = [sys.executable, "-m", "accord", "sft", *(f"{key}={value}" for key, value in settings.items())]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    index, end = tmp_path / "out" / "sft" / "state.json", time.monotonic() + 300
    while not index.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert index.exists(), "no state was saved in time"
    os.kill(_rank(process.pid, 1), signal.SIGKILL)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "rank 1 of 2: its process was killed" in said
    assert "rank 1 of 2" in json.loads((tmp_path / "out" / "sft" / "failed.json").read_text())["error"]
    reached = json.loads(index.read_text())["step"]
    resumed = subprocess.Popen(
        [*words, "--resume"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    while json.loads(index.read_text())["step"] <= reached and resumed.poll() is None and time.monotonic() < end + 100:
        time.sleep(0.02)
    resumed.send_signal(signal.SIGINT)
    shown, said = resumed.communicate(timeout=200)
    assert resumed.returncode == 130, said
    assert "the state is saved" in said
    assert shown.count("stopping after this step") == 1  # the command speaks for both ranks
    assert f"resumed at step {reached} of" in shown


def _rank(parent: int, rank: int) -> int:
    """The process of a rank that a command started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(status[1]) == parent and f"RANK={rank}".encode() in variables:
                return int(entry.name)
    raise AssertionError("no such rank")
