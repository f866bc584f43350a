"""What was decided once stays so: the status a POST was answered with, and who is reached over HTTP."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE messages.http_destinations (
            name text COLLATE "C" PRIMARY KEY,
            since timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        COMMENT ON TABLE messages.http_destinations IS
            'reached over HTTP once, so never taken for a topic; deleted by a person when one has moved to Kafka'
    """)
    # DELIVERED and never handed over: over HTTP.
    op.execute("""
        INSERT INTO messages.http_destinations (name)
        SELECT DISTINCT routed_to FROM messages.messages WHERE status = 'DELIVERED' AND handed_at IS NULL
    """)
    # Last: it shuts out every request with a key until the commit.
    op.execute("""
        ALTER TABLE messages.idempotency_keys ADD COLUMN status text NOT NULL DEFAULT 'PENDING'
            CONSTRAINT idempotency_keys_status_check CHECK (status IN ('PENDING', 'FAILED'))
    """)
    op.execute("COMMENT ON COLUMN messages.idempotency_keys.status IS 'that the first POST was answered with'")
    # FAILED without an attempt: dropped by a rule when it was posted.
    op.execute("""
        UPDATE messages.idempotency_keys SET status = 'FAILED' FROM messages.messages AS message
        WHERE message.id = message_id AND message.status = 'FAILED' AND retry_count = 0 AND redeliveries = 0
    """)


def downgrade() -> None:
    op.execute("DROP TABLE messages.http_destinations")
    op.execute("ALTER TABLE messages.idempotency_keys DROP COLUMN status")
