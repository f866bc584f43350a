"""Small samples for the planner's statistics of the tables that grow with every message.

ANALYZE reads 300 rows for each unit of the largest target among a table's columns, and autovacuum runs it whenever a
tenth of the rows is new: with the default of 100, up to 30,000 rows at a time of tables that are only ever read by key.
That was a fifth of PostgreSQL's CPU under load (docs/performance.md).
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = {
    "outbox": "id aggregatetype aggregateid type payload topic source traceparent content_type specversion created_at",
    "inbox": "command_id handled_at",
    "barrier": "transaction_id step operation outcome result reason created_at",
}


def upgrade() -> None:
    _set("10")


def downgrade() -> None:
    _set("-1")


def _set(target: str) -> None:
    for table, columns in _COLUMNS.items():
        changes = ", ".join(f"ALTER COLUMN {column} SET STATISTICS {target}" for column in columns.split())
        op.execute(f"ALTER TABLE fluxora.{table} {changes}")
