"""Lists are of one kind, newest first: without the kind a page of few transactions would read past all sagas.

In place of ``transactions_created``, so that a new saga costs as many index entries as before. States and services are
not indexed: a state changes with every step, and an index on it would end HOT updates of sagas.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX transactions_kind_created ON public.transactions (kind, created_at, id)")
    op.execute("DROP INDEX public.transactions_created")
    op.execute("COMMENT ON COLUMN public.transactions.kind IS 'saga or transaction (a two-phase commit)'")


def downgrade() -> None:
    op.execute("CREATE INDEX transactions_created ON public.transactions (created_at, id)")
    op.execute("DROP INDEX public.transactions_kind_created")
    op.execute("COMMENT ON COLUMN public.transactions.kind IS 'saga'")
