"""Connections to a store: SQLite in WAL mode with one write transaction at a time, or PostgreSQL through psycopg 3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from accord.errors import UserError
from accord.io.finite_json import dumps

PLACE_VARIABLE = "ACCORD_FEEDBACK"
DEFAULT = "checkpoints/feedback.db"
WRITE_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""
CONNECT_TIMEOUT = 10
"""Seconds to wait for a server."""
HEADER = b"SQLite format 3\0"


class StoreUnavailable(UserError):
    """The store cannot be read or written now: locked, full, damaged, or its server does not answer."""


def place_of(where: str | Path | None) -> str:
    """The path or URL of a store: ``where``, else ACCORD_FEEDBACK, else the default."""
    return str(where or os.environ.get(PLACE_VARIABLE) or DEFAULT)


def engine_of(place: str) -> sa.Engine:
    """Connections to the store at a path or a postgresql:// URL; nothing is opened yet.  Raises UserError for another URL."""
    if "://" not in place:
        return _sqlite(Path(place))
    try:
        url = sa.make_url(place)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(f"{place}: not a URL; write postgresql://USER@HOST/DATABASE, or a path.") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UserError(f"{_hidden(url)}: a store is a path or a postgresql:// URL, not {url.drivername}://.")
    try:
        import psycopg  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("PostgreSQL needs the package psycopg: pip install 'accord[postgres]'.") from None
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        json_serializer=dumps,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT},
    )


def _sqlite(path: Path) -> sa.Engine:
    """One connection per use, so that none stays open between uses or across a fork."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=os.fspath(path)),
        isolation_level="AUTOCOMMIT",
        json_serializer=dumps,
        poolclass=sa.NullPool,
        connect_args={"timeout": WRITE_TIMEOUT},
    )
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, record: object) -> None:
    with closing(connection.cursor()) as statement:
        statement.execute("PRAGMA foreign_keys = ON")


def address(engine: sa.Engine) -> str:
    """The path or URL of a store for messages, without a password."""
    return str(engine.url.database) if engine.dialect.name == "sqlite" else _hidden(engine.url)


def _hidden(url: sa.URL) -> str:
    return url.render_as_string(hide_password=True).replace("postgresql+psycopg://", "postgresql://")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A read transaction: all queries see the same state.  Raises StoreUnavailable."""
    postgres = engine.dialect.name == "postgresql"
    with _transaction(engine, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if postgres else "BEGIN") as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction; on SQLite it is the only one from its start, on PostgreSQL rows are locked where they are read.

    Raises StoreUnavailable.
    """
    with _transaction(engine, "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN") as connection:
        yield connection


@contextmanager
def _transaction(engine: sa.Engine, begin: str) -> Iterator[sa.Connection]:
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(begin)
            try:
                yield connection
            except BaseException:
                with suppress(sa.exc.SQLAlchemyError):  # of the first error, which is the one to report
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
    except sa.exc.IntegrityError:  # a name that is taken
        raise
    except sa.exc.DatabaseError as error:
        raise StoreUnavailable(f"{address(engine)}: {damage(engine, error.orig)}") from None


def damage(engine: sa.Engine, error: object) -> str:
    """What is wrong with a store, and what to do, by the database's message."""
    words = " ".join(str(error).split())
    if "append-only" in words:
        return f"{words}: a correction is a new row; nothing was changed."
    if "relation" in words and "does not exist" in words:
        return f"not a whole store ({words}); restore it from a copy, or name another database."
    if engine.dialect.name == "postgresql":
        if any(part in words for part in ("does not exist", "password", "authentication", "permission denied")):
            return f"the database refuses ({words}); check the URL, the user and the password."
        return f"the database cannot be used now ({words}); nothing was changed: is the server running?"
    if "locked" in words or "busy" in words:
        return f"another process is writing the store ({words}); nothing was changed, try again."
    if any(part in words for part in ("full", "readonly", "read-only", "unable to open", "I/O")):
        return f"the store cannot be used ({words}); nothing was changed: check the disk and the permissions."
    return f"not a readable store ({words}); restore it from a copy, or set {PLACE_VARIABLE} to another file."
