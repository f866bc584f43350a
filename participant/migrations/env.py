"""Alembic's entry: runs on the connection that ``participant.migrations.upgrade`` opened."""

from alembic import context

from participant.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
