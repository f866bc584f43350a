"""The tables a service's database holds for the platform, all in the schema ``fluxora``.

They are made and changed by ``participant.migrations`` only; a unit test compares the two.
"""

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    func,
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
