"""Prompts hold what a chat template reads besides their messages: tools, documents, switches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("prompts", sa.Column("inputs", sa.JSON(none_as_null=True), nullable=True))
