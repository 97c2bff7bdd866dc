"""Where a store is, and what is said where it cannot be reached."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from accord.errors import UserError
from accord.feedback import connect
from accord.feedback.connect import StoreUnavailable, engine_of, place_of, reading, writing
from accord.feedback.store import Store, open_store


def test_the_place_is_the_argument_then_the_variable_then_the_default(monkeypatch: Any) -> None:
    monkeypatch.delenv(connect.PLACE_VARIABLE, raising=False)
    assert place_of(None) == "checkpoints/feedback.db"
    monkeypatch.setenv(connect.PLACE_VARIABLE, "postgresql://a@b/c")
    assert place_of(None) == "postgresql://a@b/c"
    assert place_of(Path("x.db")) == "x.db"


@pytest.mark.parametrize("url", ["mysql://a:secret@b/c", "http://x/y", "postgresql+asyncpg://a:secret@b/c"])
def test_another_kind_of_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UserError, match="a path or a postgresql:// URL") as refused:
        engine_of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://a@b:port/c", "://", "postgresql://[::1/x"])
def test_no_url_is_one_sentence(url: str) -> None:
    with pytest.raises(UserError, match="not a URL"):
        engine_of(url)


def test_a_server_that_is_down_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="needs psycopg (extra postgres)")
    with pytest.raises(StoreUnavailable, match="is the server running") as refused:
        open_store(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_database_that_does_not_exist_is_one_sentence(postgresql_server: str) -> None:
    with pytest.raises(StoreUnavailable, match="check the URL"):
        open_store(postgresql_server.format(database="absent"))


def test_postgresql_without_psycopg_names_the_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install -e '\S+\[postgres\]'"):
        engine_of("postgresql://a@b/c")


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    rename = "UPDATE projects SET name = 'other'"
    with suppress(RuntimeError), writing(store.engine) as connection:
        connection.exec_driver_sql(rename)
        assert connection.exec_driver_sql("SELECT name FROM projects").scalar_one() == "other"
        raise RuntimeError
    assert [p.name for p in store.projects()] == ["tone"]


def test_reading_sees_one_state(store: Store) -> None:
    query = "SELECT name FROM projects ORDER BY name"
    with reading(store.engine) as connection:
        before = connection.exec_driver_sql(query).scalars().all()
        store.create_project("later")
        assert connection.exec_driver_sql(query).scalars().all() == before == ["tone"]


def test_a_writer_that_waits_too_long_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(connect, "WRITE_TIMEOUT", 0.05)
    first, second = open_store(tmp_path / "f.db"), open_store(tmp_path / "f.db")
    with writing(first.engine), pytest.raises(StoreUnavailable, match="another process is writing"):
        second.create_project("tone")


def test_a_store_that_was_deleted_takes_no_more_votes(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    store = open_store(path)
    store.create_project("tone")
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(StoreUnavailable, match="not a readable store"):
        store.create_project("lost")


def test_a_process_that_forked_has_connections_of_its_own(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if not child:
        try:
            for number in range(20):
                store.create_project(f"child{number}")
        finally:
            os._exit(0)
    for number in range(20):
        store.create_project(f"parent{number}")
    os.waitpid(child, 0)
    assert len(store.projects()) == 41


def test_a_store_stays_itself_where_the_program_changes_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(":memory:")  # a file of that name
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    store.create_project("tone")
    assert store.address == ":memory:"
    assert open_store(tmp_path / ":memory:", create=False).project("tone")
    assert list((tmp_path / "else").iterdir()) == []


def test_a_path_that_is_no_text_is_one_sentence() -> None:
    with pytest.raises(UserError, match="printable characters only"):
        open_store("a\udcff.db")
