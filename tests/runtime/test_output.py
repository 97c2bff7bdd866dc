"""Standard streams that close, are full, or cannot hold a character never stop training."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.runtime.console import console
from accord.runtime.output import lasting_output, open_streams

REPO = Path(__file__).parents[2]
SMALL = ["base_rows=20", "sft_rows=20", "preference_rows=20"]


class Unwritable(io.StringIO):
    """A stream whose writes fail, as those to a full disk and to a pipe without a reader."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        self.write("")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EBADF, errno.EIO])
def test_text_that_cannot_be_written_is_discarded(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(sys, "stdout", Unwritable(number))
    monkeypatch.setattr(sys, "stderr", Unwritable(number))
    with lasting_output():
        for _ in range(2):
            print("a line", flush=True)
            print("an error", file=sys.stderr)
            console.print("a table")
    with pytest.raises(OSError):
        print("outside of the block", flush=True)


def test_a_closed_stream_and_none_are_as_good_as_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("a line")
            console.print("a table")
        assert sys.stdout is stream


def test_a_stage_finishes_without_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unwritable, "flush", lambda self: None)
    monkeypatch.setattr(sys, "stdout", Unwritable(errno.EPIPE))
    assert main(["demo", f"out={tmp_path}", f"logs={tmp_path}/logs", *SMALL]) == 0
    assert (tmp_path / "demo" / "done.json").exists()
    assert not (tmp_path / "demo" / "failed.json").exists()


def test_characters_that_the_encoding_has_not_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    open_streams()
    print("── ✓ 1 ± 2", flush=True)
    assert written.getvalue() == b"?? ? 1 ? 2\n"


def command(*words: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    return subprocess.Popen([sys.executable, "-m", "accord", *words], env=environment, text=True, **more)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_pipeline_in_processes_finishes_on_a_full_disk_and_without_a_reader(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "out: out\nlogs: logs\nstages:\n  demo: {set: {base_rows: 20, sft_rows: 20, preference_rows: 20}}\n"
        "  more: {kind: demo, set: {base_rows: 30, sft_rows: 20, preference_rows: 20}}\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        ended = command("run", "p.yaml", "--jobs=2", cwd=tmp_path, stdout=writer, stderr=full, stdin=subprocess.DEVNULL)
        assert ended.wait(timeout=120) == 0
    os.close(writer)
    for name in ("demo", "more"):
        assert json.loads((tmp_path / "out" / name / "done.json").read_text())["kind"] == "demo"
    assert (tmp_path / "out" / "results.json").exists()


def test_closed_descriptors_are_not_given_to_files(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfor number in (0, 1, 2): os.close(number)\nsys.stdin = sys.stdout = sys.stderr = None\n"
        "from accord.cli import main\n"
        f"code = main(['demo', 'out=out', 'logs=logs', *{SMALL!r}])\n"
        "kinds = [os.path.samestat(os.fstat(number), os.stat(os.devnull)) for number in (0, 1, 2)]\n"
        "open('found', 'w').write(repr((code, kinds)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=120, check=True)
    assert (tmp_path / "found").read_text() == "(0, [True, True, True])"


@pytest.mark.parametrize("module", ["accord", "src.training.rlhf_sft"])
def test_ctrl_c_while_modules_load_is_one_line(tmp_path: Path, module: str) -> None:
    """A module that the command line loads sends the signal itself."""
    (tmp_path / "argparse.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = (
        f"import runpy, sys\nsys.path[0:0] = [{str(tmp_path)!r}]\nsys.argv = ['-m']\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "accord: stopped immediately; the last saved state is kept.\n")


def test_an_ignored_ctrl_c_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.__main__ import end_on_ctrl_c

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        end_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_output_of_other_commands_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, code in ((errno.ENOSPC, 2), (errno.EPIPE, 141)):
        monkeypatch.setattr(sys, "stdout", Unwritable(number))
        assert main(["config", "show", "demo"]) == code
        monkeypatch.undo()
