"""Creates a new store whole, in one transaction, and upgrades an older one with Alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from accord.errors import UserError
from accord.feedback import connect, schema
from accord.feedback.connect import PLACE_VARIABLE, address, in_words, writing
from accord.io.installation import install_command

VERSION = sa.Table(schema.VERSION_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
"""The table in which Alembic notes the newest migration."""
LOCK = 0x6163636F7264
"""Number of the lock under which a PostgreSQL database is created or upgraded."""


def prepare(engine: sa.Engine, create: bool) -> None:
    """Creates the store that is missing, if ``create``, or upgrades an older one.

    Raises UserError for a store that is missing, newer, or not a store, and where it cannot be created.
    """
    if engine.dialect.name == "sqlite":
        _prepare_file(Path(str(engine.url.database)), engine, create)
    found = _version(engine)
    if found == schema.REVISION:
        return
    if not found and not create:
        raise _missing(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        _create_or_upgrade(connection, address(engine))


def _prepare_file(path: Path, engine: sa.Engine, create: bool) -> None:
    """Makes the folder of a file that is missing; refuses what is not an SQLite database."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; a store is a file: set {PLACE_VARIABLE} or --store to one.")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file; set {PLACE_VARIABLE} or --store to another one.")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(len(connect.HEADER)) != connect.HEADER:
                    raise UserError(
                        f"{path}: is not a store of accord; set {PLACE_VARIABLE} or --store to another file."
                    )
            return
        if not create:
            raise _missing(engine)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the store cannot be opened ({error.strerror}).") from None
    with in_words(engine), engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # stored in the file


def _missing(engine: sa.Engine) -> UserError:
    return UserError(f"{address(engine)}: no store here; type 'accord feedback create NAME', or give --store.")


def _version(engine: sa.Engine) -> str:
    """The newest migration that a store has; empty where there is none."""
    with in_words(engine), engine.connect() as connection:
        return _version_in(connection)


def _version_in(connection: sa.Connection) -> str:
    if not sa.inspect(connection).has_table(schema.VERSION_TABLE):
        return ""
    return connection.execute(sa.select(VERSION.c.version_num)).scalar_one_or_none() or ""


def _create_or_upgrade(connection: sa.Connection, where: str) -> None:
    found = _version_in(connection)  # read again: another process may have created or upgraded it
    if found == schema.REVISION:
        return
    if found:
        upgrade(connection, where)
        return
    others = set(sa.inspect(connection).get_table_names())
    if others and (connection.dialect.name == "sqlite" or others & set(schema.metadata.tables)):
        some = ", ".join(sorted(others)[:3])
        raise UserError(f"{where}: is another program's database (tables {some}); use one of its own for the store.")
    schema.metadata.create_all(connection)
    for statement in schema.append_only(connection.dialect.name):
        connection.exec_driver_sql(statement)
    VERSION.create(connection)
    connection.execute(sa.insert(VERSION).values(version_num=schema.REVISION))


def upgrade(connection: sa.Connection, where: str, target: str = "head") -> None:
    """Applies the missing migrations within the connection's transaction.  Raises UserError for a newer store."""
    try:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError
    except ModuleNotFoundError:
        raise UserError(f"Upgrading a store needs the package alembic: {install_command('feedback')}.") from None
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, target)
    except CommandError:
        raise UserError(
            f"{where}: was written by a newer version of accord (this one knows revision {schema.REVISION}); update accord,"
            f" or set {PLACE_VARIABLE} or --store to another store."
        ) from None
