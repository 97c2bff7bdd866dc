"""Artifacts: put in place whole or not at all, named by their bytes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from accord.config import UserError
from accord.registry import manifest
from accord.registry.manifest import MANIFEST, content_digest, file_digest, publish, versions, write_json


def fill(folder: Path, weights: bytes = b"weights", config: str = "{}") -> None:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)


# ------------------------------------------------------------------ digests
def test_a_files_digest_is_blake2b_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"ab" * 700_000)  # more than one block
    assert file_digest(path) == hashlib.blake2b(b"ab" * 700_000, digest_size=16).hexdigest()
    assert content_digest(path) == file_digest(path)


def test_a_folders_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    """The formula by hand: sorted lines of name, NUL, digest."""
    fill(tmp_path)
    lines = "".join(
        f"{name}\0{hashlib.blake2b(content, digest_size=16).hexdigest()}\n"
        for name, content in (("config.json", b"{}"), ("deep/model.safetensors", b"weights"))
    )
    assert content_digest(tmp_path) == hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def test_one_byte_or_one_name_changes_the_digest_and_a_touch_does_not(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("a", "same", "byte", "name", "more", "less")}
    for folder in folders.values():
        fill(folder)
    os.utime(folders["same"] / "config.json", (1, 1))
    fill(folders["byte"], b"weighty")
    (folders["name"] / "config.json").rename(folders["name"] / "conf.json")
    (folders["more"] / "empty").write_text("")
    (folders["less"] / "config.json").unlink()
    digests = {name: content_digest(folder) for name, folder in folders.items()}
    assert digests["a"] == digests["same"]
    assert len(set(digests.values())) == 5


def test_manifests_within_do_not_count(tmp_path: Path) -> None:
    """A stage's folder around a published model: when and by whom it was made is no content."""
    publish(tmp_path / "stage" / "model", fill, {"name": "a"})
    before = content_digest(tmp_path / "stage")
    publish(tmp_path / "stage" / "model", fill, {"name": "b"})
    assert content_digest(tmp_path / "stage") == before


def test_bytes_do_not_slide_from_one_file_to_the_next(tmp_path: Path) -> None:
    for name, contents in (("a", ("xy", "z")), ("b", ("x", "yz"))):
        (tmp_path / name).mkdir()
        for file, content in zip("pq", contents, strict=True):
            (tmp_path / name / file).write_text(content)
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        content_digest(tmp_path / "nowhere")


# ------------------------------------------------------------------ publishing
def test_what_is_published(tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"
    digest = publish(target, fill, {"kind": "sft", "parents": {"a": "b"}})
    written = json.loads((target / MANIFEST).read_text())
    assert written == {"kind": "sft", "parents": {"a": "b"}, "digest": digest}
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
def test_a_fault_while_writing_leaves_what_was_there(
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
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no half-written folder stays behind


def test_nobody_sees_a_half_written_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(folder: Path) -> None:
        assert folder != target
        assert not target.exists()
        fill(folder)

    publish(target, write, {})
    assert (target / MANIFEST).exists()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "x.json"
    write_json(path, {"a": [1, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1, "ü"]}
    monkeypatch.setattr(manifest.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": [1, "ü"]}


def test_versions_are_those_of_what_runs() -> None:
    import platform

    import torch

    got = versions()
    assert set(got) == {"accord", "torch", "python"}
    assert got["python"] == platform.python_version()
    assert torch.__version__.startswith(got["torch"].split("+")[0])
