"""Alembic's entry: runs on the connection that ``outbox_relay.messages.migrations.upgrade`` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table_schema="messages")
context.run_migrations()
