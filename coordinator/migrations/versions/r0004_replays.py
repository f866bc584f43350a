"""Who replayed what, and when (``fluxora replay``)."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE public.replays (
            id uuid PRIMARY KEY,
            who text NOT NULL,
            source text NOT NULL,
            target text NOT NULL,
            selection json NOT NULL,
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            matched bigint,
            sent bigint,
            error text
        )
    """)
    op.execute("COMMENT ON TABLE public.replays IS 'audit of fluxora replay; the id is the header replay-id'")
    op.execute("COMMENT ON COLUMN public.replays.finished_at IS 'null: it runs, or its process was killed'")


def downgrade() -> None:
    op.execute("DROP TABLE public.replays")
