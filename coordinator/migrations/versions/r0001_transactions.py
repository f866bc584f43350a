"""Transactions, their journal, the input partitions and the idempotency keys.

Plain SQL: a migration must not change when ``saga_processors.tables`` does. A test compares the two.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COMMENTS = {
    "transactions.kind": "saga",
    "transactions.services": "whom its steps address, for filters",
    "transactions.partition": "input partition; null until the first input is folded",
    "transactions.version": "inputs that changed it; 0 = only REST has written the row",
    "transactions.definition": "as in the first input; never changes",
    "transactions.progress": "the machine's state besides the definition",
    "transactions.parked": "the machine failed on an input",
    "transactions.next_deadline": "not after the machine's next deadline: may be early (then nothing is due "
    "and it is set anew), because moving an indexed column with every step would cost more than a rare early "
    "look",
    "transactions.deadline_claimed_until": "a clock is producing its DeadlinePassed",
    "journal.partition": "of the input topic",
    "journal.offset": "of the input",
    "journal.transaction_id": "null: the input could not be decoded",
    "journal.input": "the input; the definition of a saga's first one is in transactions",
    "journal.outcome": "APPLIED, IGNORED, REJECTED, POISON or PARKED",
    "journal.state": "the transaction's state after it",
    "journal.effects": "what left because of it, in order",
    "journal.at": "the log's time of the input",
    "partitions.topic_id": "Kafka's id of the topic: a recreated topic is another log",
    "partitions.next_offset": "the first input that is not folded yet",
    "partitions.published_through": "effects of inputs below it have left",
    "idempotency_keys.request_digest": "SHA-256 of method, path and body",
}


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
    for column, meaning in _COMMENTS.items():
        table, name = column.split(".")
        quoted = meaning.replace("'", "''")
        op.execute(f"""COMMENT ON COLUMN public.{table}."{name}" IS '{quoted}'""")


def downgrade() -> None:
    op.execute("DROP TABLE public.transactions, public.journal, public.partitions, public.idempotency_keys")
