"""The database itself refuses to change or delete votes and demonstrations, except for emptying their free text."""

from __future__ import annotations

from collections.abc import Iterator

from alembic import op

revision = "0002"
down_revision = "0001"

FIXED = {
    "votes": (
        *("id", "question", "annotator", "revision", "kind", "choice", "strength", "seconds", "request", "created"),
    ),
    "demonstrations": ("id", "question", "annotator", "request", "created"),
}
FREE = {"votes": ("comment", "tags"), "demonstrations": ("text",)}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    for table in FIXED:
        for statement in postgresql(table) if dialect == "postgresql" else sqlite(table):
            op.execute(statement)


def sqlite(table: str) -> Iterator[str]:
    changed = " OR ".join(
        [*(f"NEW.{c} IS NOT OLD.{c}" for c in FIXED[table]), *(f"NEW.{c} IS NOT NULL" for c in FREE[table])]
    )
    refuse = f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
    yield f"CREATE TRIGGER {table}_unchanged BEFORE UPDATE ON {table} WHEN {changed} {refuse}"
    yield f"CREATE TRIGGER {table}_not_deleted BEFORE DELETE ON {table} {refuse}"


def postgresql(table: str) -> Iterator[str]:
    changed = " OR ".join(
        [*(f"NEW.{c} IS DISTINCT FROM OLD.{c}" for c in FIXED[table]), *(f"NEW.{c} IS NOT NULL" for c in FREE[table])]
    )
    yield (
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'UPDATE' THEN IF NOT ({changed}) THEN RETURN NEW; END IF; END IF;"
        f" RAISE EXCEPTION '{table} are append-only'; END $$"
    )
    yield (
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}"
        f" FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
    )
    yield (
        f"CREATE TRIGGER {table}_not_truncated BEFORE TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )
