"""Alembic's entry: runs on the connection that ``coordinator.migrations.upgrade`` opened."""

from alembic import context

from saga_processors.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema="public",
)
context.run_migrations()
