"""What Alembic runs: migrations within the transaction of the connection that it is given."""

from __future__ import annotations

from alembic import context

from accord.feedback.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_pk=True,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
