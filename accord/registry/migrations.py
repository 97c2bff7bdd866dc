"""Migrates the registry from one format to the next, in order and in one transaction.

A change of the tables adds a function here, raises ``FORMAT`` in schema.py, and adds a database of the old format to
tests/registry/.  The functions contain their own SQL, since schema.py has only the current tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from accord.errors import UserError
from accord.io.digests import LINEAGE, MANIFEST
from accord.io.readers import require_file
from accord.io.records import Lineage, Manifest, read_record_to_show
from accord.registry.schema import FORMAT, damage, format_of, writing


def upgrade(path: Path, engine: sa.Engine) -> None:
    """Upgrades an older registry.  Raises UserError for a newer one, and for a file that is not a registry."""
    try:
        require_file(path)
        with engine.connect() as connection:
            found = format_of(connection)
        if found < FORMAT:
            with writing(engine) as connection:
                _migrate(connection, path)
    except sa.exc.DatabaseError as error:
        raise UserError(f"{path}: {damage(error.orig)}") from None
    if found > FORMAT:
        raise UserError(
            f"{path}: was written by a newer version of accord (format {found}; this one knows {FORMAT}); update accord, or set"
            " ACCORD_REGISTRY to another file."
        )


def _migrate(connection: sa.Connection, path: Path) -> None:
    """Applies the missing steps; ``connection`` is within a write transaction.  Raises UserError for format 0."""
    found = format_of(connection)  # read again: another process may have upgraded it
    if found == 0:
        raise UserError(f"{path}: is not a registry of accord; set ACCORD_REGISTRY to another file.")
    for number in range(found, FORMAT):
        STEPS[number](connection, path.parent)
        connection.exec_driver_sql(f"PRAGMA user_version = {number + 1}")


def _one_to_two(connection: sa.Connection, folder: Path) -> None:
    """Adds tags, version numbers that are never reused, and settings, manifest and lineage.

    Format 1 had a table ``versions`` (id, name, version, kind, digest, created, code, seed, metrics, folder), parents
    and aliases that referred to versions by number.
    """
    run = connection.exec_driver_sql
    for table in ("parents", "aliases"):
        run(f"ALTER TABLE {table} RENAME TO old_{table}")
    run(
        "CREATE TABLE models (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL, version INTEGER NOT NULL,"
        " kind VARCHAR NOT NULL, digest VARCHAR NOT NULL, created VARCHAR NOT NULL, code VARCHAR NOT NULL, seed INTEGER,"
        " metrics JSON NOT NULL, settings JSON NOT NULL, manifest JSON NOT NULL, lineage JSON NOT NULL,"
        " folder VARCHAR NOT NULL, UNIQUE (name, version), UNIQUE (name, digest))"
    )
    for row in run("SELECT * FROM versions ORDER BY id").mappings().all():
        place = folder / row["folder"]
        manifest = read_record_to_show(place / MANIFEST, Manifest)
        values = (
            *(row[key] for key in ("id", "name", "version", "kind", "digest", "created", "code", "seed", "metrics")),
            *(
                json.dumps(x)
                for x in (manifest.get("settings", {}), manifest, read_record_to_show(place / LINEAGE, Lineage))
            ),
            row["folder"],
        )
        run("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    of_model = "model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE"
    run(f"CREATE TABLE parents ({of_model}, role VARCHAR NOT NULL, digest VARCHAR NOT NULL, name VARCHAR,"
        " PRIMARY KEY (model, role))")  # fmt: skip
    run("INSERT INTO parents SELECT version, role, digest, name FROM old_parents")
    run(f"CREATE TABLE aliases (name VARCHAR NOT NULL, alias VARCHAR NOT NULL, {of_model}, PRIMARY KEY (name, alias))")
    run("INSERT INTO aliases SELECT o.name, o.alias, v.id FROM old_aliases o"
        " JOIN versions v ON v.name = o.name AND v.version = o.version")  # fmt: skip
    run(f"CREATE TABLE tags ({of_model}, tag VARCHAR NOT NULL, value VARCHAR NOT NULL, PRIMARY KEY (model, tag))")
    run("CREATE TABLE names (name VARCHAR PRIMARY KEY, last INTEGER NOT NULL, latest INTEGER NOT NULL)")
    run("INSERT INTO names SELECT name, MAX(version), MAX(version) FROM versions GROUP BY name")
    for table in ("old_parents", "old_aliases", "versions"):
        run(f"DROP TABLE {table}")
    run("CREATE INDEX ix_models_digest ON models (digest)")
    run("CREATE INDEX ix_parents_digest ON parents (digest)")


def _two_to_three(connection: sa.Connection, folder: Path) -> None:
    """Adds the runs that versions come from, which format 2 did not record: each name's latest version stays its newest."""
    run = connection.exec_driver_sql
    run("CREATE TABLE runs (model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE, out VARCHAR NOT NULL,"
        " number INTEGER NOT NULL, PRIMARY KEY (model, out))")  # fmt: skip
    run("INSERT INTO runs SELECT m.id, '', m.id + (n.latest = m.version) * (SELECT MAX(id) FROM models) FROM models m"
        " JOIN names n ON n.name = m.name")  # fmt: skip
    run("ALTER TABLE names RENAME TO old_names")
    run("CREATE TABLE names (name VARCHAR PRIMARY KEY, last INTEGER NOT NULL)")
    run("INSERT INTO names SELECT name, last FROM old_names")
    run("DROP TABLE old_names")


STEPS: dict[int, Callable[[sa.Connection, Path], None]] = {1: _one_to_two, 2: _two_to_three}
