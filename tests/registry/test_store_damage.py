"""A registry that cannot be written is read, and one that cannot be read is a sentence and stays as it is."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.errors import UserError
from accord.registry import schema
from accord.registry.store import Store, open_store


@pytest.fixture
def filled(ppo: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ACCORD_REGISTRY", str(ppo.path))
    return ppo


@pytest.fixture
def read_only(filled: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """As if the file's permissions or its disk were read-only; root may write everywhere."""
    filled.path.chmod(0o444)
    monkeypatch.setattr(schema, "is_writable", lambda path: False)
    return open_store()


def test_a_read_only_registry_is_read(read_only: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(read_only.root.iterdir())
    target = str(tmp_path / "out")
    for words in (["list"], ["show", "ppo"], ["diff", "ppo", "base"], ["lineage", "ppo"], ["export", "ppo", target]):
        assert main(["models", *words]) == 0
    assert "ppo@1" in capsys.readouterr().out
    assert sorted(read_only.root.iterdir()) == before


def test_a_read_only_registry_says_so_when_it_should_change(
    read_only: Store, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_only.path.read_bytes()
    folder = str(make("new"))
    for words in (
        ["promote", "ppo"],
        ["tag", "ppo", "x"],
        ["alias", "ppo", "x"],
        ["rm", "ppo", "--yes"],
        ["import", folder],
    ):
        assert main(["models", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"accord: {read_only.path}: the registry is read-only; make it and its folder writable")
        assert error.count("\n") == 1
    assert read_only.path.read_bytes() == before


def test_a_read_only_registry_of_an_older_format_is_read(
    tmp_path: Path, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is migrated in memory."""
    with sqlite3.connect(filled.path) as c:
        c.executescript(
            "DROP TABLE runs; ALTER TABLE names ADD COLUMN latest INTEGER NOT NULL DEFAULT 1; PRAGMA user_version = 2"
        )
    monkeypatch.setattr(schema, "is_writable", lambda path: False)
    before = filled.path.read_bytes()
    assert open_store().find("ppo").label == "ppo@1"
    assert filled.path.read_bytes() == before


def test_a_newer_registry_is_refused_and_stays(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(filled.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = filled.path.read_bytes()
    assert main(["models", "list"]) == 2
    assert "written by a newer version of accord" in capsys.readouterr().err
    assert filled.path.read_bytes() == before


def test_a_damaged_registry_is_a_sentence_and_stays(filled: Store) -> None:
    """A truncated file, and random bytes anywhere and after the header."""
    with sqlite3.connect(filled.path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    whole = filled.path.read_bytes()
    for seed in range(24):
        draw, content = random.Random(seed), bytearray(whole)
        if seed % 3 == 0:
            del content[draw.randrange(1, len(content)) :]
        for _ in range(2000 if seed % 3 else 0):
            content[draw.randrange(100 * (seed % 3), len(content))] = draw.randrange(256)
        filled.path.write_bytes(content)
        with suppress(UserError):
            store = open_store()
            for version in store.list():
                store.lineage(store.find(version.label))
        assert filled.path.read_bytes() == content


@pytest.mark.parametrize("column", ["metrics", "settings", "manifest", "lineage", "created", "seed", "folder"])
def test_a_cell_that_holds_something_else_is_a_sentence(filled: Store, column: str) -> None:
    texts = ["", "[]", "3", "null", "{", '{"a": NaN', "[" * 100_000]
    for value in texts if column in ("metrics", "settings", "manifest", "lineage") else [b"\xff", b"{}"]:
        with sqlite3.connect(filled.path) as connection:
            connection.execute(f"UPDATE models SET {column} = ?", (value,))
        store = open_store()
        assert all(version.damage for version in store.list())
        with pytest.raises(UserError, match=f"(ppo|sft)@1: .*{column}.*remove it"):
            store.find("ppo@1")


def test_other_places_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, words in (
        (tmp_path, "is a folder; set ACCORD_REGISTRY to a file"),
        (tmp_path / "text", "is not a registry of accord"),
        (tmp_path / ("x" * 300), "cannot be opened .File name too long"),
    ):
        with pytest.raises(UserError, match=words):
            open_store(path)
    assert open_store(tmp_path / "text" / "x").list() == []
    assert (tmp_path / "text").read_text() == "x"


@pytest.mark.parametrize(
    ("key", "value"),
    [("metrics", [1]), ("settings", 5), ("parents", [1]), ("parents", {"a": 1}), ("versions", 3), ("seed", "x")],
)
def test_a_manifest_with_values_of_other_types_is_a_sentence(store: Store, make: Any, key: str, value: Any) -> None:
    model = make()
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(UserError, match=rf"manifest.json: {key}.*; run the stage"):
        store.add(model)
    assert store.list() == []


def test_text_that_is_not_utf8_names_nothing(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "\udcff"]) == 2
    assert "is no text in UTF-8" in capsys.readouterr().err
