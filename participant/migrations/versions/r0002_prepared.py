"""Two-phase commit: what this database has promised, and the resources that are held for it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE fluxora.prepared (
            service text COLLATE "C" NOT NULL,
            transaction_id text COLLATE "C" NOT NULL,
            state text NOT NULL
                CONSTRAINT prepared_state_check CHECK (state IN ('PREPARED', 'COMMITTED', 'ABORTED')),
            changes json NOT NULL DEFAULT '[]',
            reason text,
            prepared_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            ended_at timestamptz,
            CONSTRAINT prepared_pkey PRIMARY KEY (service, transaction_id)
        )
    """)
    # The sweep and the operator look for the few that are undecided; pruning for the old that have ended.
    op.execute("CREATE INDEX prepared_undecided ON fluxora.prepared (service, prepared_at) WHERE state = 'PREPARED'")
    op.execute("CREATE INDEX prepared_ended ON fluxora.prepared (ended_at) WHERE state <> 'PREPARED'")
    op.execute("""
        CREATE TABLE fluxora.held (
            service text COLLATE "C" NOT NULL,
            resource text COLLATE "C" NOT NULL,
            resource_id text COLLATE "C" NOT NULL,
            transaction_id text COLLATE "C" NOT NULL,
            CONSTRAINT held_pkey PRIMARY KEY (service, resource, resource_id),
            CONSTRAINT held_transaction_fkey FOREIGN KEY (service, transaction_id) REFERENCES fluxora.prepared
        )
    """)
    op.execute("CREATE INDEX held_transaction ON fluxora.held (service, transaction_id)")


def downgrade() -> None:
    op.execute("DROP TABLE fluxora.held, fluxora.prepared")
