"""The tables of the first store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("guidelines", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.create_table(
        "annotators",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=True),
        sa.Column("public_id", sa.String(length=16), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=True),
        sa.Column("guidelines_read", sa.String(length=64), nullable=True),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_annotators_project"),
        sa.PrimaryKeyConstraint("id", name="pk_annotators"),
        sa.UniqueConstraint("project", "name", name="uq_annotators_project_name"),
        sa.UniqueConstraint("public_id", name="uq_annotators_public_id"),
        sa.UniqueConstraint("token_hash", name="uq_annotators_token_hash"),
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_prompts_project"),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("project", "digest", name="uq_prompts_project_digest"),
    )
    op.create_table(
        "candidates",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("tokens", sa.JSON(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["prompt"], ["prompts.id"], name="fk_candidates_prompt"),
        sa.PrimaryKeyConstraint("id", name="pk_candidates"),
        sa.UniqueConstraint("prompt", "digest", name="uq_candidates_prompt_digest"),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("annotator", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.Column("expires", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.id"], name="fk_sessions_annotator"),
        sa.PrimaryKeyConstraint("hash", name="pk_sessions"),
    )
    op.create_index("ix_sessions_annotator", "sessions", ["annotator"], unique=False)
    op.create_table(
        "pairs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("prompt", sa.Integer(), nullable=False),
        sa.Column("a", sa.Integer(), nullable=False),
        sa.Column("b", sa.Integer(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("gold", sa.String(length=8), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("answers", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["a"], ["candidates.id"], name="fk_pairs_a"),
        sa.ForeignKeyConstraint(["b"], ["candidates.id"], name="fk_pairs_b"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_pairs_project"),
        sa.ForeignKeyConstraint(["prompt"], ["prompts.id"], name="fk_pairs_prompt"),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
        sa.UniqueConstraint("project", "digest", name="uq_pairs_project_digest"),
    )
    op.create_index("ix_pairs_open", "pairs", ["project", "gold", "answers", "id"], unique=False)
    op.create_table(
        "questions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("pair", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.Integer(), nullable=False),
        sa.Column("occasion", sa.Integer(), nullable=False),
        sa.Column("left_side", sa.String(length=1), nullable=False),
        sa.Column("asked", sa.DateTime(), nullable=False),
        sa.Column("lease_until", sa.DateTime(), nullable=False),
        sa.Column("choice", sa.String(length=8), nullable=True),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.id"], name="fk_questions_annotator"),
        sa.ForeignKeyConstraint(["pair"], ["pairs.id"], name="fk_questions_pair"),
        sa.PrimaryKeyConstraint("id", name="pk_questions"),
        sa.UniqueConstraint("pair", "annotator", "occasion", name="uq_questions_pair_annotator_occasion"),
    )
    op.create_index("ix_questions_open", "questions", ["annotator", "choice", "id"], unique=False)
    op.create_table(
        "demonstrations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("question", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.id"], name="fk_demonstrations_annotator"),
        sa.ForeignKeyConstraint(["question"], ["questions.id"], name="fk_demonstrations_question"),
        sa.PrimaryKeyConstraint("id", name="pk_demonstrations"),
        sa.UniqueConstraint("annotator", "request", name="uq_demonstrations_annotator_request"),
    )
    op.create_index("ix_demonstrations_question", "demonstrations", ["question"], unique=False)
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("question", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("choice", sa.String(length=8), nullable=True),
        sa.Column("strength", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=True),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["annotator"], ["annotators.id"], name="fk_votes_annotator"),
        sa.ForeignKeyConstraint(["question"], ["questions.id"], name="fk_votes_question"),
        sa.PrimaryKeyConstraint("id", name="pk_votes"),
        sa.UniqueConstraint("annotator", "request", name="uq_votes_annotator_request"),
        sa.UniqueConstraint("question", "revision", name="uq_votes_question_revision"),
    )
    op.create_index("ix_votes_newest", "votes", ["annotator", "created"], unique=False)
