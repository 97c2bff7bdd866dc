"""An export replaces an earlier export of the same model, and nothing else."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.io.digests import content_digest
from accord.registry.export_target import EXPORT, require_free_file
from accord.registry.exports import export
from accord.registry.store import Store


def everything_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def stage(ppo: Store, make: Any) -> Path:
    """A stage's folder as it is after its end."""
    folder = ppo.root / "rlhf" / "ppo"
    (folder / "done.json").write_text(json.dumps({"key": "k", "kind": "ppo"}))
    return folder


@pytest.mark.parametrize("form", ["hf", "safetensors"])
def test_an_earlier_export_of_the_same_name_is_replaced(ppo: Store, make: Any, tmp_path: Path, form: Any) -> None:
    target = tmp_path / "out"
    for _ in range(2):
        export(ppo, "ppo", target, form)
    ppo.add(make("ppo", 7))
    export(ppo, "ppo@2", target, form)
    assert json.loads((target / EXPORT).read_text())["version"] == 2
    if form == "hf":
        assert content_digest(target) == ppo.find("ppo@2").digest
    (target / EXPORT).unlink()  # as an earlier version of accord left it
    if form == "hf":
        export(ppo, "ppo@1", target, form)
        assert content_digest(target) == ppo.find("ppo@1").digest


Spoil = Callable[[Path, Store], Path]
TARGETS: dict[str, tuple[Spoil, str]] = {
    "another model's export": (lambda t, s: export(s, "base", t / "b", "hf")[0], "has an export of base, which is not"),
    "a folder of the user": (lambda t, s: _file(t / "mine" / "thesis.txt").parent, "has other content"),
    "a file": (lambda t, s: _file(t / "x"), "is a file"),
    "another program's model": (lambda t, s: _file(t / "hub" / "config.json").parent, "has other content"),
    "a stage's model": (lambda t, s: s.root / "rlhf" / "ppo" / "model", "belongs to the stage in"),
    "a stage's folder": (lambda t, s: s.root / "rlhf" / "ppo", "belongs to the stage in"),
    "new, in a stage's folder": (lambda t, s: s.root / "rlhf" / "ppo" / "new", "belongs to the stage in"),
    "the registry's folder": (lambda t, s: s.root, "has other content"),
    "the registry's models": (lambda t, s: s.root / "models", "belongs to the registry"),
    "one of its models": (lambda t, s: s.find("ppo").folder, "belongs to the registry"),
    "new, among its models": (lambda t, s: s.root / "models" / "new", "belongs to the registry"),
    "with a file of the user": (lambda t, s: _file(export(s, "ppo", t / "o", "hf")[0] / "notes.txt").parent, "notes.txt is not"),
    "a damaged manifest": (lambda t, s: _file(_file(t / "d" / "manifest.json").parent / "README.md").parent, "other content"),
    "a damaged record": (lambda t, s: _file(t / "d" / EXPORT).parent, "has other content"),
    "below a file": (lambda t, s: _file(t / "x") / "y", "could not be written"),
    "a link to a stage": (lambda t, s: _link(t / "link", s.root / "rlhf" / "ppo"), "belongs to the stage in"),
    "a loop of links": (lambda t, s: _link(t / "loop", t / "loop"), "cannot be read .Symlink loop|Too many levels"),
    "a name too long": (lambda t, s: t / ("x" * 300), "File name too long"),
}  # fmt: skip


def _file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")
    return path


def _link(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("form", ["hf", "safetensors"])
def test_anything_else_is_refused_and_stays(ppo: Store, stage: Path, tmp_path: Path, case: str, form: Any) -> None:
    spoil, words = TARGETS[case]
    target = spoil(tmp_path, ppo)
    before = everything_in(tmp_path)
    with pytest.raises(UserError, match=words) as refused:
        export(ppo, "ppo", target, form)
    assert str(target) in str(refused.value)
    assert everything_in(tmp_path) == before


def test_a_failed_export_leaves_the_earlier_one(ppo: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(ppo, "ppo", tmp_path / "out", "hf")
    before = everything_in(tmp_path / "out")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accord.registry.exports.card", full)
    with pytest.raises(UserError, match=r"out: could not be written .No space left on device"):
        export(ppo, "ppo", tmp_path / "out", "hf")
    assert everything_in(tmp_path / "out") == before
    assert not list(tmp_path.glob(".*"))


def gguf_file(path: Path, *texts: str) -> Path:
    """The start of a GGUF file with these keys and values, all strings."""
    pairs = zip(texts[::2], texts[1::2], strict=True)
    body = b"".join(_counted(key) + struct.pack("<I", 8) + _counted(value) for key, value in pairs)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(texts) // 2) + body)
    return path


def _counted(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def test_a_gguf_file_of_the_same_name_may_be_replaced(ppo: Store, stage: Path, tmp_path: Path) -> None:
    ours = gguf_file(tmp_path / "a.gguf", "general.architecture", "llama", "general.name", "ppo")
    require_free_file(ours, "ppo", ppo)
    require_free_file(tmp_path / "new.gguf", "ppo", ppo)
    require_free_file(gguf_file(tmp_path / "l.gguf", "general.name", "model"), "llama", ppo)
    nameless = gguf_file(tmp_path / "c.gguf", "general.architecture", "llama")
    text = _file(tmp_path / "d.gguf")
    for path in (gguf_file(tmp_path / "b.gguf", "general.name", "dpo"), nameless, text):
        with pytest.raises(UserError, match="is not an earlier export of ppo"):
            require_free_file(path, "ppo", ppo)
    for path, words in (
        (stage / "model" / "x.gguf", "belongs to the stage in"),
        (ppo.find("ppo").folder / "x.gguf", "belongs to the registry"),
        (export(ppo, "ppo", tmp_path / "hf", "hf")[0] / "x.gguf", "is a model folder"),
    ):
        with pytest.raises(UserError, match=words):
            require_free_file(path, "ppo", ppo)
