"""The registry's tables, and connections to them: SQLite in WAL mode, one write transaction at a time.

The format number is SQLite's ``user_version``.  A new database is created completely at a temporary path and then
linked, so that no process sees a partial one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from accord.errors import UserError
from accord.io.atomic import creating
from accord.io.finite_json import dumps

FORMAT = 3
WRITE_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""

metadata = sa.MetaData()

names = sa.Table(
    "names",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("last", sa.Integer, nullable=False),  # the highest version number so far; none is reused
)
models = sa.Table(
    "models",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False, index=True),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("seed", sa.Integer),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("lineage", sa.JSON, nullable=False),
    sa.Column("folder", sa.String, nullable=False),  # relative to the database's folder
    sa.UniqueConstraint("name", "version"),
    sa.UniqueConstraint("name", "digest"),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("model", sa.ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    sa.Column(
        "out", sa.String, primary_key=True
    ),  # relative to the database's folder; empty: imported, or not recorded
    sa.Column("number", sa.Integer, nullable=False),  # larger for what was added later
)
parents = sa.Table(
    "parents",
    metadata,
    sa.Column("model", sa.ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("role", sa.String, primary_key=True),  # the config key
    sa.Column("digest", sa.String, nullable=False, index=True),
    sa.Column("name", sa.String),
)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("alias", sa.String, primary_key=True),
    sa.Column("model", sa.ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
)
tags = sa.Table(
    "tags",
    metadata,
    sa.Column("model", sa.ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)


def engine_of(path: Path) -> sa.Engine:
    """Connections to a database file, one per use, so that none stays open between uses or across a fork."""
    return _engine(path, poolclass=sa.NullPool, connect_args={"timeout": WRITE_TIMEOUT})


def engine_of_copy(path: Path) -> sa.Engine:
    """A connection to a copy in memory of a database that cannot be written.  Raises UserError where it cannot be read.

    SQLite reads a database in WAL mode through files beside it, which it may not create here: ``immutable`` needs none.
    """
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        try:
            _read_into(copy, path, "mode=ro")
        except sqlite3.OperationalError:
            _read_into(copy, path, "immutable=1")
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: {damage(error)}") from None
    return _engine(path, poolclass=sa.StaticPool, creator=lambda: copy)


def _read_into(copy: sqlite3.Connection, path: Path, how: str) -> None:
    with closing(sqlite3.connect(f"file:{quote(os.fspath(path.absolute()))}?{how}", uri=True)) as disk:
        disk.backup(copy)


def _engine(path: Path, **options: Any) -> sa.Engine:
    url = sa.URL.create("sqlite", database=os.fspath(path))
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", json_serializer=dumps, **options)
    sa.event.listen(engine, "connect", _prepare)
    return engine


def is_writable(path: Path) -> bool:
    """Whether a database can be written: SQLite also needs to create files beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def damage(error: object) -> str:
    """What is wrong with a registry, and what to do, by SQLite's message."""
    words = str(error)
    if "locked" in words or "busy" in words:
        return f"another process is writing the registry ({words}); nothing was changed, try again."
    if any(part in words for part in ("full", "readonly", "read-only", "unable to open", "I/O")):
        return f"the registry cannot be used ({words}); nothing was changed: check the disk and the permissions."
    return f"not a readable registry ({words}); restore it from a copy, or set ACCORD_REGISTRY to another file."


def _prepare(connection: object, record: object) -> None:
    connection.text_factory = _text  # type: ignore[attr-defined]
    with closing(connection.cursor()) as statement:  # type: ignore[attr-defined]
        statement.execute("PRAGMA foreign_keys = ON")


def _text(content: bytes) -> str:
    """Text of a damaged row must not hide the other rows."""
    return content.decode("utf-8", "replace")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A read transaction: all queries see the same state."""
    with _transaction(engine, "BEGIN") as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction that is exclusive from its start, so that what it reads stays current."""
    with _transaction(engine, "BEGIN IMMEDIATE") as connection:
        yield connection


@contextmanager
def _transaction(engine: sa.Engine, begin: str) -> Iterator[sa.Connection]:
    """Raises UserError where another process holds the lock for too long, the disk is full, or the file is damaged."""
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(begin)
            try:
                yield connection
            except BaseException:
                if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
    except (sa.exc.IntegrityError, sa.exc.ProgrammingError):  # mistakes of the queries, not of the file
        raise
    except UnicodeEncodeError as error:
        raise UserError(f"{error.object!r}: is no text in UTF-8, so it names nothing in the registry.") from None
    except (sa.exc.DatabaseError, UnicodeDecodeError) as error:
        raise UserError(f"{engine.url.database}: {damage(getattr(error, 'orig', error))}") from None


def create(path: Path) -> None:
    """Creates an empty registry at ``path``, unless another process created it first.  Raises UserError."""
    try:
        with (
            suppress(FileExistsError),
            creating(path) as temporary,
            _without_sidecars(temporary),
            engine_of(temporary).connect() as connection,
        ):
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # stored in the file
            metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT}")
    except OSError as error:
        raise UserError(
            f"{path}: the registry cannot be created ({error.strerror}); set ACCORD_REGISTRY to another file."
        ) from None


@contextmanager
def _without_sidecars(database: Path) -> Iterator[None]:
    """Removes the files that SQLite keeps beside a database while it is open."""
    try:
        yield
    finally:
        for sidecar in database.parent.glob(f"{database.name}-*"):
            sidecar.unlink(missing_ok=True)


def format_of(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
