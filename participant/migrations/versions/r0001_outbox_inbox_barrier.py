"""Outbox, inbox and barrier, and the publication that Debezium reads.

Plain SQL: a migration must not change when ``participant.tables`` does.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE fluxora.outbox (
            id uuid PRIMARY KEY,
            aggregatetype text NOT NULL,
            aggregateid text NOT NULL,
            type text NOT NULL,
            payload bytea NOT NULL,
            topic text NOT NULL,
            source text NOT NULL,
            traceparent text,
            content_type text NOT NULL,
            specversion text NOT NULL DEFAULT '1.0',
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    # Avro and JSON bodies are small and short-lived: compressing them costs more than it saves.
    op.execute("ALTER TABLE fluxora.outbox ALTER COLUMN payload SET STORAGE EXTERNAL")
    op.execute("""
        CREATE TABLE fluxora.inbox (
            command_id text COLLATE "C" PRIMARY KEY,
            handled_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        CREATE TABLE fluxora.barrier (
            transaction_id uuid NOT NULL,
            step text COLLATE "C" NOT NULL,
            operation text COLLATE "C" NOT NULL
                CONSTRAINT barrier_operation_check CHECK (operation IN ('ACTION', 'COMPENSATION')),
            outcome text NOT NULL
                CONSTRAINT barrier_outcome_check CHECK (outcome IN ('DONE', 'REFUSED', 'CANCELLED')),
            result text,
            reason text,
            created_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT barrier_pkey PRIMARY KEY (transaction_id, step, operation)
        )
    """)
    # Inserts only: pruning deletes rows, and a delete is nothing anyone should read.
    op.execute("CREATE PUBLICATION fluxora_outbox FOR TABLE fluxora.outbox WITH (publish = 'insert')")


def downgrade() -> None:
    op.execute("DROP PUBLICATION fluxora_outbox")
    op.execute("DROP TABLE fluxora.barrier, fluxora.inbox, fluxora.outbox")
