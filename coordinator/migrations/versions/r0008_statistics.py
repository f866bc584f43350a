"""Small samples for the planner's statistics of the tables that grow with every input.

ANALYZE reads 300 rows for each unit of the largest target among the columns of a table and of its indexes over
expressions, and autovacuum runs it whenever a tenth of the rows has changed: with the default of 100, up to 30,000 wide
rows at a time. That was a fifth of PostgreSQL's CPU under load (docs/performance.md).
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = {
    "transactions": "id kind name state services partition version definition progress needs_attention parked "
    "next_deadline deadline_claimed_until created_at updated_at",
    "journal": "partition offset transaction_id input_type input outcome reason state effects at",
}


def upgrade() -> None:
    _set("10")


def downgrade() -> None:
    _set("-1")


def _set(target: str) -> None:
    for table, columns in _COLUMNS.items():
        changes = ", ".join(f'ALTER COLUMN "{column}" SET STATISTICS {target}' for column in columns.split())
        op.execute(f"ALTER TABLE public.{table} {changes}")
    op.execute(f"ALTER INDEX public.journal_request ALTER COLUMN 1 SET STATISTICS {target}")
