"""The coordinator's own tables: the states, the journal, the partitions (DESIGN section 1).

They lie in schema ``public`` of the coordinator's database, beside the ``fluxora`` schema that every service's
database has (participant.tables). Written by the processors, except for the first, STARTED, row of a transaction,
which REST writes so that a GET after the POST finds it.
"""

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)

metadata = MetaData()

transactions = Table(
    "transactions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False, comment="saga or transaction (a two-phase commit)"),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("services", ARRAY(Text), nullable=False, comment="whom its steps address, for filters"),
    Column("partition", SmallInteger, comment="input partition; null until the first input is folded"),
    Column("version", Integer, nullable=False, comment="inputs that changed it; 0 = only REST has written the row"),
    Column("definition", JSON, nullable=False, comment="as in the first input; never changes"),
    Column("progress", JSON, comment="the machine's state besides the definition"),
    Column("needs_attention", Boolean, nullable=False, server_default=text("false")),
    Column("parked", Boolean, nullable=False, server_default=text("false"), comment="the machine failed on an input"),
    Column(
        "next_deadline",
        DateTime(timezone=True),
        comment="not after the machine's next deadline: may be early (then nothing is due and it is set anew), "
        "because moving an indexed column with every step would cost more than a rare early look",
    ),
    Column("deadline_claimed_until", DateTime(timezone=True), comment="a clock is producing its DeadlinePassed"),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    # Lists are of one kind. Neither state nor services is indexed: updates of either would no longer be HOT.
    Index("transactions_kind_created", "kind", "created_at", "id"),
    Index("transactions_due", "next_deadline", postgresql_where=text("next_deadline IS NOT NULL")),
    # Room for the new version of a row on its own page: updates that touch no indexed column stay there (HOT).
    postgresql_with={"fillfactor": "70"},
)

journal = Table(
    "journal",
    metadata,
    Column("partition", SmallInteger, primary_key=True, comment="of the input topic"),
    Column("offset", BigInteger, primary_key=True, comment="of the input"),
    Column("transaction_id", Uuid, comment="null: the input could not be decoded"),
    Column("input_type", Text, nullable=False),
    Column("input", JSON, comment="the input; the definition of a saga's first one is in transactions"),
    Column("outcome", Text, nullable=False, comment="APPLIED, IGNORED, REJECTED, POISON or PARKED"),
    Column("reason", Text),
    Column("state", Text, comment="the transaction's state after it"),
    Column("effects", JSON, comment="what left because of it, in order"),
    Column("at", DateTime(timezone=True), nullable=False, comment="the log's time of the input"),
    Index("journal_transaction", "transaction_id"),
    # Where REST finds the answer to a request. Partial: no other input pays for it.
    Index(
        "journal_request",
        text("(input ->> 'request_id')"),
        postgresql_where=text("input_type = 'fluxora.RequestMade'"),
    ),
)

partitions = Table(
    "partitions",
    metadata,
    Column("partition", SmallInteger, primary_key=True),
    Column("topic_id", Text, nullable=False, comment="Kafka's id of the topic: a recreated topic is another log"),
    Column("next_offset", BigInteger, nullable=False, comment="the first input that is not folded yet"),
    Column("published_through", BigInteger, nullable=False, comment="effects of inputs below it have left"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

withheld = Table(
    "withheld",
    metadata,
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    comment="journal rows whose effects have perhaps not left; they leave once their transaction is not parked",
)

saga_definitions = Table(
    "saga_definitions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False, comment="never changes once it is registered"),
    Column("document", JSON, nullable=False, comment="as it was registered; steps as in POST /sagas"),
    Column(
        "created_at",
        DateTime(timezone=True),
        nullable=False,
        comment="the newest of a name is what runs by default",
    ),
    UniqueConstraint("name", "version", name="saga_definitions_version"),
    Index("saga_definitions_created", "created_at", "id"),
    Index("saga_definitions_newest", "name", "created_at", "id"),
)

replays = Table(
    "replays",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("who", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("selection", JSON, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True), comment="null: it runs, or its process was killed"),
    Column("matched", BigInteger),
    Column("sent", BigInteger),
    Column("error", Text),
    comment="audit of fluxora replay; the id is the header replay-id",
)

pruned_transactions = Table(
    "pruned_transactions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False),
    comment="that they were there and how they ended; saga_processors.retention",
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    Column("transaction_id", Uuid, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("idempotency_keys_created", "created_at"),
)
