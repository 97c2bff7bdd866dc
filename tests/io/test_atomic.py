"""Files and folders are written whole or not at all, and only when their bytes are on the disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from accord.io import atomic
from accord.io.atomic import (
    create_text,
    exchange,
    leftovers,
    replacing,
    replacing_file,
    replacing_folder,
    set_aside,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)

REPO = Path(__file__).parents[2]
WRITERS: dict[str, Callable[[Path, str], None]] = {
    "bytes": lambda path, text: write_bytes(path, text.encode()),
    "text": write_text,
    "json": lambda path, text: write_json(path, {"text": text}),
    "jsonl": lambda path, text: write_jsonl(path, [{"text": text}]),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fails(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


# ------------------------------------------------------------------ files
@pytest.mark.parametrize("kind", WRITERS)
def test_a_new_file_is_whole_and_alone_in_its_new_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / "folder" / "x"
    for text in ("long " * 1000, "short, ü"):
        WRITERS[kind](path, text)
        found = path.read_text(encoding="utf-8")
        assert found == text if kind in ("bytes", "text") else json.loads(found) == {"text": text}
        assert names(path.parent) == ["x"]


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a\r\nb\nc\r")
    assert (tmp_path / "x").read_bytes() == b"a\r\nb\nc\r"


def test_json_is_indented_and_its_keys_keep_their_order_unless_asked(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"b": 1, "a": [2]})
    assert (tmp_path / "x").read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'
    write_json(tmp_path / "x", {"b": 1, "a": [2]}, sort_keys=True)
    assert list(json.loads((tmp_path / "x").read_text())) == ["a", "b"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    path = tmp_path / "x"
    WRITERS[kind](path, "old")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match="No space"):
            WRITERS[kind](path, "new " * 100_000)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x"]


def test_an_error_while_the_rows_are_made_leaves_the_old_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x", [{"a": 1}])

    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 2}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_jsonl(tmp_path / "x", rows())
    assert (tmp_path / "x").read_text() == '{"a": 1}\n'
    assert names(tmp_path) == ["x"]


def test_the_bytes_are_on_the_disk_before_the_name_changes_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        calls.append("folder" if os.path.samestat(os.fstat(descriptor), tmp_path.stat()) else "file")

    def renamed(old: Path, new: Path) -> None:
        assert old.read_bytes() == b"all of it", "flushed before the last bytes left Python's buffer"
        replace(old, new)
        calls.append("rename")

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    with replacing_file(tmp_path / "x") as file:
        file.write(b"all of it")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize(("number", "tolerated"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_folders_is_no_error_and_a_failing_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, tolerated: bool
) -> None:
    fsync = os.fsync

    def refuses(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    if tolerated:
        write_text(tmp_path / "x", "x")
    else:
        with pytest.raises(OSError, match="Input/output"):
            write_text(tmp_path / "x", "x")


def test_what_a_kill_leaves_is_found_and_the_old_file_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from accord.io.atomic import replacing_file, replacing_folder
with replacing_folder(Path({str(tmp_path)!r}) / "folder"), replacing_file(Path({str(tmp_path)!r}) / "x") as file:
    file.write(b"new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "x").read_text() == "old"
    left = leftovers(tmp_path)
    assert len(left) == 2
    assert names(tmp_path) == sorted(["x", *(path.name for path in left)])


# ------------------------------------------------------------------ names that must be free
@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_created_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    create_text(tmp_path / "x", "first")
    with pytest.raises(FileExistsError):
        create_text(tmp_path / "x", "second")
    assert (tmp_path / "x").read_text() == "first"
    assert names(tmp_path) == ["x"]


# ------------------------------------------------------------------ folders
def fill(folder: Path, content: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(content)


def swap_by_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange_in_one_step", lambda new, old: False)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_folders_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        swap_by_renames(monkeypatch)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "x").read_text() == "new"
    assert (tmp_path / "new" / "x").read_text() == "old"
    assert names(tmp_path) == ["new", "old"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing_folder(tmp_path / "x") as folder:
            assert folder != tmp_path / "x"
            fill(folder, content)
        assert (tmp_path / "x" / "deep" / "file").read_text() == content
        assert names(tmp_path) == ["x"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "x") as folder:
        fill(folder, "old")
    with pytest.raises(TypeError), replacing_folder(tmp_path / "x") as folder:
        fill(folder, b"makes the folder and no file")  # type: ignore[arg-type]
    assert (tmp_path / "x" / "deep" / "file").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_failed_second_rename_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_by_renames(monkeypatch)
    with replacing_folder(tmp_path / "x") as folder:
        fill(folder, "old")
    replace = os.replace

    def fail(source: Path, place: Path) -> None:
        if Path(place) == tmp_path / "x" and Path(source).name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Input/output"), replacing_folder(tmp_path / "x") as folder:
            fill(folder, "new")
    assert (tmp_path / "x" / "deep" / "file").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_folder_set_aside_is_a_leftover(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    fill(tmp_path / "x", "here")
    aside = set_aside(tmp_path / "x")
    assert leftovers(tmp_path) == [aside]
    assert (aside / "deep" / "file").read_text() == "here"
    assert not set_aside(tmp_path / "absent").exists()


def test_writers_of_paths_may_use_any_library(tmp_path: Path) -> None:
    def library(path: Path) -> None:
        path.write_bytes(b"ours")

    with replacing(tmp_path / "x") as temporary:
        library(temporary)
    assert (tmp_path / "x").read_bytes() == b"ours"


# ------------------------------------------------------------------ JSON and text
def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"a": float("nan")})
    write_jsonl(tmp_path / "y", [{"a": float("inf")}, {"a": 1.0}])
    assert json.loads((tmp_path / "x").read_text()) == {"a": None}
    assert (tmp_path / "y").read_text() == '{"a": null}\n{"a": 1.0}\n'


def test_half_a_character_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "a\ud800b")
    write_jsonl(tmp_path / "y", [{"a": "\ud800"}])
    assert (tmp_path / "x").read_text(encoding="utf-8") == "a?b"
    assert json.loads((tmp_path / "y").read_text(encoding="utf-8")) == {"a": "?"}


# ------------------------------------------------------------------ permissions
@pytest.fixture(params=[0o022, 0o077, 0o002])
def allowed(request: pytest.FixtureRequest) -> Iterator[int]:
    """The permissions of a new file under some umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def private(path: Path) -> None:
    """Writes as libraries do that make a temporary file of their own."""
    path.unlink(missing_ok=True)
    path.write_text("x")
    path.chmod(0o600)


def test_new_files_and_folders_are_as_readable_as_the_umask_allows(tmp_path: Path, allowed: int) -> None:
    for kind, write in WRITERS.items():
        write(tmp_path / kind, "x")
        assert mode(tmp_path / kind) == allowed
    with replacing(tmp_path / "private") as temporary:
        private(temporary)
    create_text(tmp_path / "created", "x")
    with replacing_folder(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
        private(folder / "deep" / "file")
    found = [mode(tmp_path / name) for name in ("private", "created", "folder/deep/file")]
    assert found == [allowed] * 3
    assert mode(tmp_path / "folder") & 0o666 == allowed


def test_permissions_that_somebody_has_set_stay(tmp_path: Path) -> None:
    for given in (0o600, 0o664, 0o640):
        write_text(tmp_path / "x", "old")
        (tmp_path / "x").chmod(given)
        write_text(tmp_path / "x", "new")
        assert mode(tmp_path / "x") == given
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder").chmod(given | 0o100)
        with replacing_folder(tmp_path / "folder"):
            pass
        assert mode(tmp_path / "folder") == given | 0o100


def test_a_file_system_without_permissions_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> NoReturn:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuses)
    with replacing(tmp_path / "x") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT, 0o600))
    assert names(tmp_path) == ["x"]


# ------------------------------------------------------------------ errors
@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "file" / "x", "File exists"),
        (tmp_path / ("x" * 260), "File name too long"),
        (tmp_path / "folder", "Is a directory"),
    ):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError, match=words) as failed:
            WRITERS[kind](path, "x")
        assert str(failed.value.filename).startswith(str(path.parent))
        assert ".tmp" not in str(failed.value)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space") as failed:
        WRITERS[kind](tmp_path / "x", "x")
    assert failed.value.filename == str(tmp_path / "x")
