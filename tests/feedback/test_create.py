"""A store is created whole, upgraded, and refused in one sentence where it is not ours, newer or damaged."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import create, schema
from accord.feedback.connect import engine_of, reading, writing
from accord.feedback.store import open_store

pytest.importorskip("alembic", reason="needs alembic (extra feedback)")


def triggers(connection: sa.Connection) -> set[str]:
    sqlite = "SELECT name || sql FROM sqlite_master WHERE type = 'trigger'"
    postgresql = (
        "SELECT pg_get_triggerdef(t.oid) || pg_get_functiondef(t.tgfoid) FROM pg_trigger t"
        " WHERE NOT tgisinternal AND pg_table_is_visible(t.tgrelid)"
    )
    return set(connection.exec_driver_sql(sqlite if connection.dialect.name == "sqlite" else postgresql).scalars())


def migrated(place: str, target: str = "head") -> sa.Engine:
    """A database made by migrations alone."""
    if "://" not in place:
        with closing(sqlite3.connect(place)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    engine = engine_of(place)
    with writing(engine) as connection:
        create.upgrade(connection, place, target)
    return engine


def test_migrations_lead_to_the_tables_of_the_schema(place: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = migrated(place)
    with reading(engine) as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": schema.VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []
        assert connection.execute(sa.select(create.VERSION.c.version_num)).scalar_one() == schema.REVISION
        by_migration = triggers(connection)
        assert len(by_migration) == 4
        names = sorted(schema.metadata.tables)
        assert sorted(set(sa.inspect(connection).get_table_names()) - {schema.VERSION_TABLE}) == names
    with writing(engine) as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql(f"DROP TABLE {schema.VERSION_TABLE}")
        if connection.dialect.name == "postgresql":
            for name in schema.ERASABLE:
                connection.exec_driver_sql(f"DROP FUNCTION {name}_append_only")
    with reading(open_store(place).engine) as connection:
        assert triggers(connection) == by_migration


def test_an_older_store_is_upgraded_with_its_votes(place: str) -> None:
    engine = migrated(place, "0001")
    with writing(engine) as connection:
        assert triggers(connection) == set()
        connection.exec_driver_sql(
            "INSERT INTO projects (id, name, settings, guidelines, created)"
            " VALUES (1, 'old', '{\"overlap\": 2}', '\"be kind\"', '2026-01-02 03:04:05')"
        )
    store = open_store(place)
    assert (store.project("old").settings.overlap, store.project("old").guidelines) == (2, "be kind")
    with reading(store.engine) as connection:
        assert len(triggers(connection)) == 4


def test_a_newer_store_is_refused(place: str) -> None:
    store = open_store(place)
    with writing(store.engine) as connection:
        connection.execute(sa.update(create.VERSION).values(version_num="9999"))
    with pytest.raises(UserError, match="newer version of accord"):
        open_store(place)


def test_many_processes_may_create_one_store(place: str) -> None:
    errors: list[BaseException] = []

    def opening() -> None:
        try:
            open_store(place).projects()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=opening) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_another_programs_database_is_refused_and_unchanged(place: str) -> None:
    engine = engine_of(place)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE projects (title VARCHAR(9))")
    with pytest.raises(UserError, match=r"another program's database \(tables projects\)"):
        open_store(place)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["projects"]


def test_a_missing_store_is_created_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store here; type 'accord feedback create NAME'"):
        open_store(tmp_path / "a" / "f.db", create=False)
    assert not (tmp_path / "a").exists()
    assert open_store(tmp_path / "a" / "f.db").projects() == []
    with closing(sqlite3.connect(tmp_path / "a" / "f.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a database, but long enough to be one", "is not a store of accord"),
        (b"SQLite format 3\0" + bytes(range(256)) * 20, "not a readable store"),
    ],
)
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "f.db"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_store(path)
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        open_store(tmp_path)


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "f.db").touch()
    assert open_store(tmp_path / "f.db").projects() == []


@pytest.mark.parametrize("damaged", ["votes", "projects"])
def test_a_store_without_a_table_is_one_sentence(tmp_path: Path, damaged: str) -> None:
    store = open_store(tmp_path / "f.db")
    store.create_project("tone")
    with closing(sqlite3.connect(tmp_path / "f.db")) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(f"DROP TABLE {damaged}")
        connection.commit()
    from accord.feedback.vote_rows import read_votes

    with pytest.raises(UserError, match="not a readable store"):
        read_votes(open_store(tmp_path / "f.db"), "tone")


def test_upgrading_without_alembic_names_the_extra(place: str, monkeypatch: Any) -> None:
    import sys

    migrated(place, "0001")
    monkeypatch.setitem(sys.modules, "alembic", None)
    with pytest.raises(UserError, match=r"pip install -e '\S+\[feedback\]'"):
        open_store(place)
