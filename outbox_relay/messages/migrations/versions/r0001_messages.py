"""Messages and the idempotency keys they were posted with."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COMMENTS = {
    "messages.position": "order within a lane (routed_to, key)",
    "messages.destination": "as it was posted",
    "messages.routed_to": "where it goes after the routing rules",
    "messages.due": "when it may be attempted, or when its claim ends; null: an earlier message of its lane is under "
    "way, or it waits for Kafka, or it has ended",
    "messages.claim": "of whoever attempts it now; what an attempt came to is written only under its claim",
    "messages.handed_at": "put into fluxora.outbox; DELIVERED when it is seen in its topic",
    "messages.retry_count": "attempts that failed, since it was posted or last sent again",
    "messages.ended_at": "when it became DELIVERED or FAILED",
    "messages.letter_due": "FAILED, and not yet in fluxora.messages.dlq",
    "idempotency_keys.request_digest": "SHA-256 of method, path and body",
}


def upgrade() -> None:
    op.execute("""
        CREATE TABLE messages.messages (
            id uuid PRIMARY KEY,
            position bigint GENERATED ALWAYS AS IDENTITY,
            destination text COLLATE "C" NOT NULL,
            routed_to text COLLATE "C" NOT NULL,
            key text COLLATE "C",
            type text COLLATE "C",
            payload json NOT NULL,
            traceparent text,
            status text NOT NULL
                CONSTRAINT messages_status_check CHECK (status IN ('PENDING', 'DELIVERED', 'FAILED')),
            due timestamptz,
            claim uuid,
            handed_at timestamptz,
            retry_count integer NOT NULL DEFAULT 0,
            redeliveries integer NOT NULL DEFAULT 0,
            last_error text,
            letter_due boolean NOT NULL DEFAULT false,
            created_at timestamptz NOT NULL,
            ended_at timestamptz
        ) WITH (fillfactor = 80)
    """)
    op.execute("CREATE INDEX messages_created ON messages.messages (created_at, id)")
    op.execute("CREATE INDEX messages_destination ON messages.messages (destination, created_at, id)")
    op.execute("CREATE INDEX messages_due ON messages.messages (routed_to, due) WHERE due IS NOT NULL")
    op.execute("""
        CREATE INDEX messages_lane ON messages.messages (routed_to, key, position)
        WHERE status = 'PENDING' AND key IS NOT NULL
    """)
    op.execute("CREATE INDEX messages_pending ON messages.messages (routed_to) WHERE status = 'PENDING'")
    op.execute("CREATE INDEX messages_ended ON messages.messages (status, ended_at) WHERE status <> 'PENDING'")
    op.execute("CREATE INDEX messages_letters ON messages.messages (ended_at) WHERE letter_due")
    op.execute("""
        CREATE TABLE messages.idempotency_keys (
            key text COLLATE "C" PRIMARY KEY,
            request_digest bytea NOT NULL,
            message_id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("CREATE INDEX idempotency_keys_created ON messages.idempotency_keys (created_at)")
    for column, meaning in _COMMENTS.items():
        table, name = column.split(".")
        quoted = meaning.replace("'", "''")
        op.execute(f"COMMENT ON COLUMN messages.{table}.{name} IS '{quoted}'")


def downgrade() -> None:
    op.execute("DROP TABLE messages.messages, messages.idempotency_keys")
