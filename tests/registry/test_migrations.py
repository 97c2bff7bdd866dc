"""A registry of format 1 becomes one of today; one of tomorrow is refused."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from accord.errors import UserError
from accord.io.digests import content_digest, verify
from accord.registry import migrations, schema
from accord.registry.store import Store, open_store

# As format 1 made it.
FORMAT_1 = """
CREATE TABLE versions (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL,
  created TEXT NOT NULL, code TEXT NOT NULL, seed INTEGER, metrics JSON NOT NULL, folder TEXT NOT NULL,
  UNIQUE (name, version), UNIQUE (name, digest));
CREATE TABLE parents (
  version INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE, role TEXT NOT NULL, digest TEXT NOT NULL,
  name TEXT, PRIMARY KEY (version, role));
CREATE TABLE aliases (
  name TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (name, alias));
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


@pytest.fixture
def old(tmp_path: Path, make: Any) -> Path:
    """Two versions of sft and a reward model made from the first; the first has an alias."""
    root = tmp_path / "project"
    rows = []
    for i, (name, version, weights) in enumerate((("reward", 1, 3), ("sft", 1, 1), ("sft", 2, 2)), 1):
        model = make(name, weights=weights, kind=name)
        digest = content_digest(model)
        (root / "models").mkdir(exist_ok=True)
        model.rename(root / "models" / digest)
        rows.append((i, name, version, name, digest, "2026-01-01", "0.1.0", 7, '{"nll": 0.5}', f"models/{digest}"))
    with sqlite3.connect(root / "registry.sqlite") as connection:
        connection.executescript(FORMAT_1)
        connection.executemany("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO parents VALUES (1, 'model.base_model', ?, 'sft')", (rows[1][4],))
        connection.execute("INSERT INTO aliases VALUES ('sft', 'champion', 1)")
    connection.close()
    return root / "registry.sqlite"


def test_everything_is_there_after_the_migration(old: Path, make: Any) -> None:
    store = open_store(old)
    assert [v.label for v in store.list()] == ["reward@1", "sft@1", "sft@2"]
    first = store.find("sft@champion")
    assert (first.version, first.metrics, first.seed, first.created) == (1, {"nll": 0.5}, 7, "2026-01-01")
    assert first.settings == {"training": {"learning_rate": 1e-3}}, "read from the artifact"
    assert store.find("sft").version == 2
    assert store.find("reward").parents == {"model.base_model": first.digest}
    verify(first.folder)
    with pytest.raises(UserError, match=r"were made from it .reward@1"):
        store.unalias("sft", "champion") or store.remove("sft@1")
    assert store.add(make(weights=9)).version == 3
    store.tag("sft", "new")


def columns(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    with sqlite3.connect(path) as c:
        tables = [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {t: {(row[1], row[3], row[5]) for row in c.execute(f"PRAGMA table_info({t})")} for t in tables}
        indices = {row[0] for row in c.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")}
    return {**found, "indices": {(name,) for name in indices}}


def test_a_migrated_registry_has_the_tables_of_a_new_one(old: Path, store: Store, tmp_path: Path) -> None:
    """Column, not null, place in the primary key; SQLite makes text keys nullable unless NOT NULL is given."""
    open_store(old)
    schema.create(tmp_path / "new" / "registry.sqlite")
    got, wanted = columns(old), columns(tmp_path / "new" / "registry.sqlite")
    assert got.keys() == wanted.keys()
    for table in wanted:
        assert {row[0] for row in got[table]} == {row[0] for row in wanted[table]}, table


def test_half_a_migration_is_none(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = columns(old)
    step = migrations.STEPS[1]

    def break_off(connection: sa.Connection, folder: Path) -> None:
        step(connection, folder)
        raise KeyboardInterrupt

    monkeypatch.setitem(migrations.STEPS, 1, break_off)
    with pytest.raises(KeyboardInterrupt):
        open_store(old)
    assert columns(old) == before
    monkeypatch.undo()
    assert len(open_store(old).list()) == 3


def _open(path: Path, errors: Any) -> None:
    try:
        errors.put(len(open_store(path).list()))
    except BaseException as error:
        errors.put(repr(error))


def test_four_processes_open_an_old_registry_at_once(old: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(old, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [3] * 4
    for process in processes:
        process.join()


def test_a_newer_one_is_refused(store: Store, make: Any) -> None:
    store.add(make())
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"newer version of accord .format 99; this one knows 3.; update accord"):
        open_store(store.path)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "registry.sqlite"
    text.write_text("not a database at all, but long enough to be asked for its header" * 20)
    with pytest.raises(UserError, match="not a readable registry"):
        open_store(text)
    assert text.read_text().startswith("not a database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(UserError, match="not a registry of accord"):
        open_store(other)
    assert columns(other).keys() == {"recipes", "indices"}
