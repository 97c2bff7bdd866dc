"""Connections to a store: SQLite in WAL mode with one write transaction at a time, or PostgreSQL through psycopg 3."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from accord.errors import UserError
from accord.io.finite_json import dumps
from accord.io.installation import install_command

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
        raise UserError(f"PostgreSQL needs the package psycopg: {install_command('postgres')}.") from None
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        json_serializer=dumps,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT},
    )
    _forget_in_children(engine)
    return engine


def _sqlite(path: Path) -> sa.Engine:
    """Connections that stay open between uses: closing the last one moves the whole log into the file."""
    if not os.fspath(path).isprintable():
        raise UserError(f"{os.fspath(path)!r}: a store's path has printable characters only; name another file.")
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=os.fspath(path.absolute())),  # the program may change its folder
        execution_options={"place": os.fspath(path)},
        isolation_level="AUTOCOMMIT",
        json_serializer=dumps,
        poolclass=sa.QueuePool,
        max_overflow=-1,
        connect_args={"timeout": WRITE_TIMEOUT, "check_same_thread": False},
    )

    def enforce(connection: Any, record: object) -> None:
        with closing(connection.cursor()) as statement:
            statement.execute("PRAGMA foreign_keys = ON")

    file = path.absolute()

    def note(connection: object, record: Any) -> None:
        record.info["file"] = _identity(file)

    def compare(connection: object, record: Any, proxy: object) -> None:
        """Replaces a connection to a file that was moved or deleted since: it would take votes that nobody finds."""
        if record.info["file"] != _identity(file):
            raise sa.exc.DisconnectionError

    for name, listener in (("connect", enforce), ("connect", note), ("checkout", compare)):
        sa.event.listen(engine, name, listener)
    _forget_in_children(engine)
    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file at a path."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _forget_in_children(engine: sa.Engine) -> None:
    """Has a process that forks from this one open connections of its own."""
    reference = weakref.ref(engine)

    def forget() -> None:
        if (found := reference()) is not None:
            found.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def address(engine: sa.Engine) -> str:
    """The path or URL of a store for messages, without a password."""
    return str(engine.get_execution_options().get("place") or _hidden(engine.url))


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
    with in_words(engine), engine.connect() as connection:
        connection.exec_driver_sql(begin)
        try:
            yield connection
        except BaseException:
            with suppress(sa.exc.SQLAlchemyError):  # of the first error, which is the one to report
                connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")


@contextmanager
def in_words(engine: sa.Engine) -> Iterator[None]:
    """Has the database's errors raise StoreUnavailable, with what is wrong and what to do."""
    try:
        yield
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
