"""Artifacts are written whole or not at all, and named by their bytes."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.errors import UserError
from accord.io import atomic
from accord.io.digests import LINEAGE, MANIFEST, TOKENIZER_FILES, content_digest, file_digest, verify
from accord.registry.manifest import publish, versions


def fill(folder: Path, weights: bytes = b"weights", config: str = "{}") -> None:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)


# ------------------------------------------------------------------ publishing
def test_a_published_folder_has_files_and_a_manifest(tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"
    digest = publish(target, fill, {"kind": "sft", "parents": {"a": "b"}})
    written = json.loads((target / MANIFEST).read_text())
    files = {name: file_digest(target / name) for name in ("config.json", "deep/model.safetensors")}
    assert written == {"kind": "sft", "parents": {"a": "b"}, "digest": digest, "files": files}
    assert content_digest(target) == digest
    bare = tmp_path / "bare"
    fill(bare)
    assert content_digest(bare) == digest  # the manifest is no part of it
    (bare / MANIFEST).write_text(json.dumps({"kind": "other", "digest": digest}))
    assert content_digest(bare) == digest
    assert [p.name for p in target.parent.iterdir()] == ["here"]


def test_publishing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    first = publish(target, lambda folder: fill(folder, b"old"), {})
    (target / "left over").write_text("from before")
    second = publish(target, fill, {})
    assert first != second
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "deep", MANIFEST]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("fault", "seen", "words"),
    [
        (OSError(28, "No space left on device"), UserError, "model: could not be written .No space left on device"),
        (ValueError("bad tensor"), ValueError, "bad tensor"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full", "bug", "ctrl-c"],
)
def test_an_error_while_writing_leaves_the_old_folder(
    tmp_path: Path, fault: BaseException, seen: type[BaseException], words: str | None
) -> None:
    target = tmp_path / "model"
    digest = publish(target, fill, {})

    def write(folder: Path) -> None:
        fill(folder, b"half")
        raise fault

    with pytest.raises(seen, match=words):
        publish(target, write, {})
    assert content_digest(target) == digest
    assert (target / "deep" / "model.safetensors").read_bytes() == b"weights"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no half-written folder is left


def test_nobody_sees_a_half_written_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(folder: Path) -> None:
        assert folder != target
        assert not target.exists()
        fill(folder)

    publish(target, write, {})
    assert (target / MANIFEST).exists()


def test_versions_are_those_of_what_runs() -> None:
    import platform

    import torch

    got = versions()
    assert set(got) == {"accord", "torch", "python"}
    assert got["python"] == platform.python_version()
    assert torch.__version__.startswith(got["torch"].split("+")[0])


# ------------------------------------------------------------------ a folder that is never absent
def swap_by_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange_in_one_step", lambda new, old: False)


def test_a_failed_second_rename_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap_by_renames(monkeypatch)
    target = tmp_path / "model"
    digest = publish(target, fill, {})
    replace = os.replace

    def fail(source: Path, place: Path) -> None:
        if Path(place) == target and Path(source).name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, place)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="the old content is kept"):
        publish(target, lambda folder: fill(folder, b"new"), {})
    assert content_digest(target) == digest
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux swaps folders in one step")
def test_a_reader_always_finds_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    publish(target, fill, {})
    missed: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not os.path.exists(target / MANIFEST):
                missed.append("absent")

    thread = threading.Thread(target=watch)
    thread.start()
    for i in range(60):
        publish(target, lambda folder, i=i: fill(folder, str(i).encode()), {})  # type: ignore[misc]
    done.set()
    thread.join()
    assert missed == []


# ------------------------------------------------------------------ still what was written?
def lose(folder: Path) -> None:
    (folder / "config.json").unlink()


def flip(folder: Path) -> None:
    path = folder / "deep" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def slip_in(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def forge(folder: Path) -> None:
    """Another file, with its digest corrected in ``files``, not in ``digest``."""
    flip(folder)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["deep/model.safetensors"] = file_digest(folder / "deep" / "model.safetensors")
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lose, "config.json: missing"),
        (flip, "model.safetensors: changed since it was written"),
        (slip_in, "adapter_config.json: is not listed"),
        (forge, "manifest.json: its digest does not match"),
    ],
)
def test_what_is_no_longer_as_written_is_named(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    target = tmp_path / "model"
    publish(target, fill, {})
    verify(target)
    harm(target)
    with pytest.raises(UserError, match=words):
        verify(target)


def test_a_card_may_be_edited_and_an_old_manifest_still_opens(tmp_path: Path) -> None:
    target = tmp_path / "model"
    publish(target, fill, {})
    (target / "README.md").write_text("about this model")
    (target / ".DS_Store").write_text("a desktop's")
    verify(target)
    content = json.loads((target / MANIFEST).read_text())
    del content["files"]
    (target / MANIFEST).write_text(json.dumps(content))
    flip(target)
    verify(target)
    shutil.rmtree(target / "deep")
    (target / MANIFEST).unlink()
    verify(target)


def test_only_the_tokenizer_is_read_for_the_tokenizer(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(folder: Path) -> None:
        fill(folder)
        (folder / "tokenizer.json").write_text("{}")

    publish(target, write, {})
    flip(target)
    verify(target, TOKENIZER_FILES)
    (target / "chat_template.jinja").write_text("{{ 1 }}")
    with pytest.raises(UserError, match=r"chat_template.jinja: is not listed"):
        verify(target, TOKENIZER_FILES)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "sft"}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    fill(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    for check in (verify, content_digest):
        with pytest.raises(UserError, match=MANIFEST):
            check(tmp_path)


def test_where_it_came_from_is_no_content(tmp_path: Path) -> None:
    """Two ways to the same bytes are the same to what comes after; a changed record is refused all the same."""

    def write(text: str) -> Callable[[Path], None]:
        return lambda folder: (fill(folder), (folder / LINEAGE).write_text(text))[0]

    a = publish(tmp_path / "a", write("one"), {})
    b = publish(tmp_path / "b", write("two"), {})
    assert a == b == content_digest(tmp_path / "a")
    (tmp_path / "a" / LINEAGE).write_text("three")
    with pytest.raises(UserError, match=r"lineage.json: changed"):
        verify(tmp_path / "a")
