"""The tables a service's database holds for the platform, all in the schema ``fluxora``.

They are made and changed by ``participant.migrations`` only; a unit test compares the two.
"""

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    func,
    text,
)

SCHEMA = "fluxora"
#: What Debezium reads; made by the migration, `FOR TABLE fluxora.outbox WITH (publish = 'insert')`.
PUBLICATION = "fluxora_outbox"

metadata = MetaData(schema=SCHEMA)

#: Messages that leave with the transaction that wrote them. The names without underscores are Debezium's
#: (EventRouter, "Basic outbox table").
outbox = Table(
    "outbox",
    metadata,
    Column("id", Uuid, primary_key=True),  # CloudEvents id; UUIDv7, so it orders by time too
    Column("aggregatetype", Text, nullable=False),
    Column("aggregateid", Text, nullable=False),  # the Kafka key
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("topic", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("traceparent", Text),
    Column("content_type", Text, nullable=False),
    Column("specversion", Text, nullable=False, server_default="1.0"),  # of CloudEvents
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: Commands that were handled: the row exists exactly when their reply is in the outbox.
#: The "C" collation compares bytes, which is faster and never changes under an index.
inbox = Table(
    "inbox",
    metadata,
    Column("command_id", Text(collation="C"), primary_key=True),
    Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

#: What became of a step here; its rules are in ``participant.barrier``.
barrier = Table(
    "barrier",
    metadata,
    Column("transaction_id", Uuid, nullable=False),
    Column("step", Text(collation="C"), nullable=False),
    Column("operation", Text(collation="C"), nullable=False),
    Column("outcome", Text, nullable=False),
    Column("result", Text),  # JSON, with DONE
    Column("reason", Text),  # with REFUSED
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("transaction_id", "step", "operation", name="barrier_pkey"),
    CheckConstraint("operation IN ('ACTION', 'COMPENSATION')", name="barrier_operation_check"),
    CheckConstraint("outcome IN ('DONE', 'REFUSED', 'CANCELLED')", name="barrier_outcome_check"),
)

#: What became of a two-phase commit here: the promise (PREPARED, with all that commit needs) and the memory of its
#: end, which answers late and repeated calls. One row for a transaction and a participant of it in this database.
prepared = Table(
    "prepared",
    metadata,
    Column("service", Text(collation="C"), nullable=False),
    Column("transaction_id", Text(collation="C"), nullable=False),
    Column("state", Text, nullable=False),
    Column("changes", JSON, nullable=False, server_default="[]"),  # in the order in which they are applied
    Column("reason", Text),  # with ABORTED, when this side said no
    Column("prepared_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("ended_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("service", "transaction_id", name="prepared_pkey"),
    CheckConstraint("state IN ('PREPARED', 'COMMITTED', 'ABORTED')", name="prepared_state_check"),
    Index("prepared_undecided", "service", "prepared_at", postgresql_where=text("state = 'PREPARED'")),
    Index("prepared_ended", "ended_at", postgresql_where=text("state <> 'PREPARED'")),
)

#: Resources held by a transaction that is PREPARED: the primary key refuses a second one.
held = Table(
    "held",
    metadata,
    Column("service", Text(collation="C"), nullable=False),
    Column("resource", Text(collation="C"), nullable=False),
    Column("resource_id", Text(collation="C"), nullable=False),
    Column("transaction_id", Text(collation="C"), nullable=False),
    PrimaryKeyConstraint("service", "resource", "resource_id", name="held_pkey"),
    ForeignKeyConstraint(
        ["service", "transaction_id"],
        ["fluxora.prepared.service", "fluxora.prepared.transaction_id"],
        name="held_transaction_fkey",
    ),
    Index("held_transaction", "service", "transaction_id"),
)
