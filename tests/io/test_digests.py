"""Digests of files and folders: names and bytes count, times and manifests do not; damage is named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from accord.errors import UserError
from accord.io.digests import content_digest, file_digest
from accord.registry.manifest import publish


def fill(folder: Path, weights: bytes = b"weights", config: str = "{}") -> None:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)


def test_a_files_digest_is_blake2b_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"ab" * 700_000)  # more than one block
    assert file_digest(path) == hashlib.blake2b(b"ab" * 700_000, digest_size=16).hexdigest()
    assert content_digest(path) == file_digest(path)


def test_a_folders_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    """The formula written out: sorted lines of name, NUL, digest."""
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
    """A stage's folder around a published model: when and by whom it was made is not content."""
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


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        content_digest(tmp_path / "nowhere")


def test_what_is_neither_a_file_nor_a_folder_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: a pipe, expected a file"):
        content_digest(tmp_path / "pipe")
    with pytest.raises(UserError, match="none: no such file or folder"):
        content_digest(tmp_path / "none")
