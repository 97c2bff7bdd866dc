"""A folder's lock: one owner at a time; dead processes do not count, other hosts do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from accord.pipeline.lock import LOCK, Locked, alive, hold_lock, owner, process_start

REPO = Path(__file__).parents[2]


def write(folder: Path, **changes: Any) -> None:
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "start": process_start(os.getpid()), "since": "today"}
    (folder / LOCK).write_text(json.dumps({**mine, **changes}))


def test_a_lock_is_held_and_released(tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        lock = owner(tmp_path)
        assert (lock["pid"], lock["host"]) == (os.getpid(), socket.gethostname())
        assert alive(lock)
        with (
            pytest.raises(Locked, match=rf"process {os.getpid()} is writing it .*wait for it, or stop it"),
            hold_lock(tmp_path),
        ):
            pass
        assert owner(tmp_path) == lock  # the refused process changed nothing
    assert list(tmp_path.iterdir()) == []


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_lock(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_is_seen_even_while_nobody_has_waited_for_it(tmp_path: Path) -> None:
    code = f"import sys, time; sys.path.insert(0, {str(REPO)!r})\nfrom pathlib import Path\n"
    code += f"from accord.pipeline.lock import hold_lock\nwith hold_lock(Path({str(tmp_path)!r})):\n"
    code += "    print(1, flush=True); time.sleep(60)\n"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(Locked, match=f"process {child.pid} is writing it"), hold_lock(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    for _ in range(500):  # a zombie from now on
        if not alive(owner(tmp_path)):
            break
        time.sleep(0.01)
    with hold_lock(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("content", ['{"pid": 1, "ho', "", "[]", "{}"])
def test_an_empty_lock_file_has_no_owner(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with hold_lock(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_the_pid_of_another_process_does_not_count(tmp_path: Path) -> None:
    """The pid is in use again, by a process that started at another time."""
    write(tmp_path, pid=os.getppid(), start="long ago")
    with hold_lock(tmp_path):
        pass
    write(tmp_path, pid=os.getppid(), start=process_start(os.getppid()))
    with pytest.raises(Locked), hold_lock(tmp_path):
        pass


def test_another_hosts_lock_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, host="elsewhere", pid=12)
    with pytest.raises(Locked) as caught, hold_lock(tmp_path):
        pass
    said = str(caught.value)
    assert "process 12 on host 'elsewhere' is writing it (since today)" in said
    assert f"remove {tmp_path / LOCK} and run again" in said


def test_the_slower_of_two_that_find_a_dead_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one pauses between its look at the dead owner's lock and its own, and the second one looks."""
    write(tmp_path, pid=2**22 + 1)
    looked, refused, inside = threading.Event(), threading.Event(), []

    def alive_slowly(lock: dict[str, Any]) -> bool:
        if threading.current_thread() is first:
            looked.set()
            time.sleep(0.3)
        return alive(lock)

    def take() -> None:
        with hold_lock(tmp_path):
            inside.append(1)
            refused.wait(10)

    monkeypatch.setattr("accord.pipeline.lock.alive", alive_slowly)
    first = threading.Thread(target=take)
    first.start()
    try:
        assert looked.wait(10)
        with pytest.raises(Locked), hold_lock(tmp_path):
            inside.append(2)
    finally:
        refused.set()
        first.join()
    assert inside == [1]


def test_of_many_that_find_a_dead_owner_one_at_a_time_gets_in(tmp_path: Path) -> None:
    """Eight processes take over stale locks again and again; two inside at once would be seen by a file."""
    code = f"""
import sys, os, json
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from accord.pipeline.lock import LOCK, Locked, hold_lock
folder, inside, entered = Path({str(tmp_path)!r}), Path({str(tmp_path)!r}) / "inside", 0
for _ in range(150):
    try:
        with hold_lock(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another is inside
            entered += 1
            os.unlink(inside)
            if entered % 3 == 0:  # leave as the dead do
                (folder / LOCK).write_text(json.dumps({{"pid": 2**22 + 1, "host": os.uname().nodename, "start": "x"}}))
    except Locked:
        pass
print(entered)
"""
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    entered = [child.communicate(timeout=120)[0] for child in children]
    assert all(child.returncode == 0 for child in children)
    assert sum(map(int, entered)) > 100
