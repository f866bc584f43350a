"""Transactions, their journal, the input partitions and the idempotency keys.

Plain SQL: a migration must not change when ``saga_processors.tables`` does. A test compares the two.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE public.transactions (
            id uuid PRIMARY KEY,
            kind text NOT NULL,
            name text NOT NULL,
            state text NOT NULL,
            services text[] NOT NULL,
            partition smallint,
            version integer NOT NULL,
            definition json NOT NULL,
            progress json,
            needs_attention boolean NOT NULL DEFAULT false,
            parked boolean NOT NULL DEFAULT false,
            next_deadline timestamptz,
            deadline_claimed_until timestamptz,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        ) WITH (fillfactor = 70)
    """)
    op.execute("CREATE INDEX transactions_created ON public.transactions (created_at, id)")
    op.execute("""
        CREATE INDEX transactions_due ON public.transactions (next_deadline) WHERE next_deadline IS NOT NULL
    """)
    op.execute("""
        CREATE TABLE public.journal (
            partition smallint NOT NULL,
            "offset" bigint NOT NULL,
            transaction_id uuid,
            input_type text NOT NULL,
            input json,
            outcome text NOT NULL,
            reason text,
            state text,
            effects json,
            at timestamptz NOT NULL,
            PRIMARY KEY (partition, "offset")
        )
    """)
    op.execute("CREATE INDEX journal_transaction ON public.journal (transaction_id)")
    op.execute("""
        CREATE TABLE public.partitions (
            partition smallint PRIMARY KEY,
            topic_id text NOT NULL,
            next_offset bigint NOT NULL,
            published_through bigint NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        CREATE TABLE public.idempotency_keys (
            key text PRIMARY KEY,
            request_digest bytea NOT NULL,
            transaction_id uuid NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("CREATE INDEX idempotency_keys_created ON public.idempotency_keys (created_at)")
    # The tables say themselves what their columns mean: SQL is the operator's tool.
    for column, meaning in COMMENTS.items():
        table, name = column.split(".")
        op.execute(f"""COMMENT ON COLUMN public.{table}."{name}" IS '{meaning}'""")


COMMENTS: dict[str, str] = {}


def downgrade() -> None:
    op.execute("DROP TABLE public.transactions, public.journal, public.partitions, public.idempotency_keys")
