"""The tables of a store, the same on SQLite and PostgreSQL.

A change here adds a migration in ``migrations/versions`` and raises ``REVISION``; a test holds the two equal.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

REVISION = "0003"
"""The newest migration."""
VERSION_TABLE = "feedback_version"


class AnyText(sa.types.TypeDecorator[str]):
    """Any text, as a JSON string: neither database holds half of a surrogate pair, and PostgreSQL no null byte."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None:
            return None
        plain = value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
        return json.dumps(value, ensure_ascii=not plain)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(json.loads(value))


class Moment(sa.types.TypeDecorator[datetime]):
    """A moment in UTC; a column has it without its time zone, which SQLite does not know."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=timezone.utc)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("guidelines", AnyText, nullable=False),
    sa.Column("created", Moment, nullable=False),
)
prompts = sa.Table(
    "prompts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("messages", sa.JSON, nullable=False),
    sa.Column("inputs", sa.JSON(none_as_null=True)),  # what a chat template reads besides: tools, documents, switches
    sa.UniqueConstraint("project", "digest"),
)
candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("prompt", sa.ForeignKey("prompts.id"), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("text", AnyText, nullable=False),
    sa.Column("tokens", sa.JSON(none_as_null=True)),
    sa.Column("policy", AnyText, nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.UniqueConstraint("prompt", "digest"),
)
pairs = sa.Table(
    "pairs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("prompt", sa.ForeignKey("prompts.id"), nullable=False),
    sa.Column("a", sa.ForeignKey("candidates.id"), nullable=False),
    sa.Column("b", sa.ForeignKey("candidates.id"), nullable=False),
    sa.Column("probability", sa.Double, nullable=False),  # with which it was chosen to be asked
    sa.Column("gold", sa.String(8)),  # the known answer of a gold question
    sa.Column("source", AnyText, nullable=False),
    sa.Column("answers", sa.Integer, nullable=False),  # annotators whose current vote is an answer, not a skip
    sa.Column("created", Moment, nullable=False),
    sa.UniqueConstraint("project", "digest"),
    sa.Index("ix_pairs_open", "project", "gold", "answers", "id"),
)
annotators = sa.Table(
    "annotators",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project", sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.String(80)),  # none: forgotten
    sa.Column("public_id", sa.String(16), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("token_hash", sa.String(64), unique=True),  # none: revoked
    sa.Column("guidelines_read", sa.String(64)),  # digest of the guidelines that were read
    sa.Column("created", Moment, nullable=False),
    sa.UniqueConstraint("project", "name"),
)
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("annotator", sa.ForeignKey("annotators.id"), nullable=False, index=True),
    sa.Column("created", Moment, nullable=False),
    sa.Column("expires", Moment, nullable=False),
)
questions = sa.Table(
    "questions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("pair", sa.ForeignKey("pairs.id"), nullable=False),
    sa.Column("annotator", sa.ForeignKey("annotators.id"), nullable=False),
    sa.Column("occasion", sa.Integer, nullable=False),  # 0 first, 1 … repeats
    sa.Column("left_side", sa.String(1), nullable=False),  # the candidate shown left: a or b
    sa.Column("asked", Moment, nullable=False),
    sa.Column("lease_until", Moment, nullable=False),
    sa.Column("choice", sa.String(8)),  # of the current vote; none: open
    sa.UniqueConstraint("pair", "annotator", "occasion"),
    sa.Index("ix_questions_open", "annotator", "choice", "id"),
)
votes = sa.Table(
    "votes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("question", sa.ForeignKey("questions.id"), nullable=False),
    sa.Column("annotator", sa.ForeignKey("annotators.id"), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),  # 0 …; the highest one is current
    sa.Column("kind", sa.String(8), nullable=False),  # vote or undo
    sa.Column("choice", sa.String(8)),  # a, b, tie, both_bad, skip; none for an undo
    sa.Column("strength", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("comment", AnyText),
    sa.Column("tags", sa.JSON(none_as_null=True)),
    sa.Column("request", sa.String(64), nullable=False),  # the client's; the same one again is the same vote
    sa.Column("created", Moment, nullable=False),
    sa.UniqueConstraint("question", "revision"),
    sa.UniqueConstraint("annotator", "request"),
    sa.Index("ix_votes_newest", "annotator", "created"),
)
demonstrations = sa.Table(
    "demonstrations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("question", sa.ForeignKey("questions.id"), nullable=False, index=True),
    sa.Column("annotator", sa.ForeignKey("annotators.id"), nullable=False),
    sa.Column("text", AnyText),  # none: forgotten
    sa.Column("request", sa.String(64), nullable=False),
    sa.Column("created", Moment, nullable=False),
    sa.UniqueConstraint("annotator", "request"),
)

# ------------------------------------------------------------------ votes and demonstrations only grow
ERASABLE = {"votes": ("comment", "tags"), "demonstrations": ("text",)}
"""The columns that ``accord feedback forget`` may empty."""


def append_only(dialect: str) -> list[str]:
    """The statements by which a database refuses to change or delete votes, except for emptying free text."""
    made: list[str] = []
    for name, erasable in ERASABLE.items():
        fixed = [c.name for c in metadata.tables[name].columns if c.name not in erasable]
        changed = " OR ".join(
            [f"NEW.{c} IS {'DISTINCT FROM' if dialect == 'postgresql' else 'NOT'} OLD.{c}" for c in fixed]
            + [f"NEW.{c} IS NOT NULL" for c in erasable]
        )
        if dialect == "postgresql":
            made += [
                f"CREATE FUNCTION {name}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" IF TG_OP = 'UPDATE' THEN IF NOT ({changed}) THEN RETURN NEW; END IF; END IF;"
                f" RAISE EXCEPTION '{name} are append-only'; END $$",
                f"CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE ON {name}"
                f" FOR EACH ROW EXECUTE FUNCTION {name}_append_only()",
                f"CREATE TRIGGER {name}_not_truncated BEFORE TRUNCATE ON {name}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_append_only()",
            ]
        else:
            refuse = f"BEGIN SELECT RAISE(ABORT, '{name} are append-only'); END"
            made += [
                f"CREATE TRIGGER {name}_unchanged BEFORE UPDATE ON {name} WHEN {changed} {refuse}",
                f"CREATE TRIGGER {name}_not_deleted BEFORE DELETE ON {name} {refuse}",
            ]
    return made


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(timezone.utc)
