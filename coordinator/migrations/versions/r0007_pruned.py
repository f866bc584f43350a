"""What is left of a transaction that was pruned: that it was there, and how it ended.

It keeps a second copy of its first input from running it again, tells services which of their rows are no longer
needed, and ``fluxora rebuild`` what it need not miss.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE public.pruned_transactions (
            id uuid PRIMARY KEY,
            kind text NOT NULL,
            state text NOT NULL,
            ended_at timestamptz NOT NULL
        )
    """)
    op.execute(
        "COMMENT ON TABLE public.pruned_transactions IS 'that they were there and how they ended; "
        "saga_processors.retention'"
    )


def downgrade() -> None:
    op.execute("DROP TABLE public.pruned_transactions")
