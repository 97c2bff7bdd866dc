"""The registry's tables, and connections to them: SQLite in WAL mode, one write transaction at a time.

The format number is SQLite's ``user_version``.  A new database is created completely at a temporary path and then
linked, so that no process sees a partial one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa

from accord.errors import UserError
from accord.io.atomic import creating

FORMAT = 2
WRITE_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""

metadata = sa.MetaData()

names = sa.Table(
    "names",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("last", sa.Integer, nullable=False),  # the highest version number so far; none is reused
    sa.Column("latest", sa.Integer, nullable=False),  # the version added last
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
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=sa.NullPool,
        connect_args={"timeout": WRITE_TIMEOUT},
        isolation_level="AUTOCOMMIT",
    )
    sa.event.listen(engine, "connect", _prepare)
    return engine


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
    """Raises UserError where another process holds the lock for too long, or where the disk is full."""
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
    except sa.exc.DatabaseError as error:
        raise UserError(
            f"{engine.url.database}: the registry cannot be used ({error.orig}); nothing was changed, try again."
        ) from None


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
