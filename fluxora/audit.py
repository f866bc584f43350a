"""``fluxora audit``: is every row of every outbox in its topic? And is anything about to go wrong with that?

Debezium is asked nothing: the ids in each outbox are compared with the ids in the topics. The rows are those that one
snapshot of the database shows; a row that is not in its topic is missing for certain once Debezium has confirmed more
of the write-ahead log than had been written at that moment (the watermark). Read-only, but for ``refill``.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from confluent_kafka import KafkaError, Message, Producer
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors import Connect, configuration
from connectors.connect import Connector
from connectors.debezium import PREFIX
from fluxora.topic_reader import Progress, TopicReader, TopicUnavailable, headers_of
from participant.tables import PUBLICATION
from schemas import FluxoraError

#: Clocks of the databases and of the brokers differ by less.
_CLOCK_SKEW = timedelta(minutes=10)
#: Of the connector's configuration, what may differ from ours: tuning, and secrets that Connect may hide.
_TUNING = frozenset({"name", "poll.interval.ms", "heartbeat.interval.ms", "database.password", "database.user"})
_FLUSH_S = 30.0


class CannotAudit(FluxoraError):
    """A database, Connect or Kafka does not answer; nothing is known."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A row of an outbox that is not in its topic."""

    id: str
    topic: str
    key: str
    type: str
    created_at: str


@dataclass(slots=True)
class DatabaseAudit:
    """What is so in one database."""

    connector: str
    database: str
    #: No gap among the rows up to here, RFC 3339: the moment of the snapshot, or before the first missing row.
    no_gap_up_to: str | None = None
    #: Rows compared.
    rows: int = 0
    missing: list[Missing] = field(default_factory=list)
    #: Rows that are in no topic and older than what the topic still holds: nothing can be said of them.
    beyond_retention: int = 0
    #: Rows that had not arrived and that Debezium had not confirmed within the wait: under way, or held up.
    under_way: int = 0
    refilled: int = 0
    lag_bytes: int | None = None
    retained_bytes: int | None = None
    #: What is not as `fluxora service add` makes it, and what needs a person.
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.missing and not self.problems and not self.under_way


@dataclass(frozen=True, slots=True)
class _Row:
    id: UUID
    topic: str
    key: str
    type: str
    created_at: datetime

    def missing(self) -> Missing:
        return Missing(str(self.id), self.topic, self.key, self.type, _time(self.created_at))


@dataclass(frozen=True, slots=True)
class _Snapshot:
    rows: dict[UUID, _Row]
    at: datetime
    #: The end of the write-ahead log then: Debezium has all of the rows once it has confirmed it.
    lsn: str


def audit(
    connect: Connect,
    bootstrap_servers: str,
    *,
    since: datetime | None,
    wait_s: float,
    only: str | None,
    progress: Callable[[str], Progress],
) -> list[DatabaseAudit]:
    """Audit the outbox of every database that has a connector of ours.

    Args:
        since: rows from this time on; ``None``: all that the outboxes hold.
        wait_s: how long to wait for rows that have not arrived yet.
        only: the name of one database.
        progress: gives a progress function for a piece of work.

    Raises:
        CannotAudit: a database does not answer, or there is none.
    """
    found = []
    for connector in connect.connectors(PREFIX).values():
        if only is not None and connector.config.get("database.dbname") != only:
            continue
        try:
            with psycopg.connect(conninfo(connector.config), autocommit=True, connect_timeout=5) as connection:
                found.append(_audit(connector, connection, bootstrap_servers, since, wait_s, progress))
        except psycopg.Error as error:
            raise CannotAudit(f"the database of connector {connector.name}: {error}") from error
    if not found:
        raise CannotAudit(
            "Connect has no connector of ours"
            + ("" if only is None else f" for a database {only!r}")
            + "; `fluxora init` and `fluxora service add` make them"
        )
    return found


def conninfo(config: dict[str, str]) -> str:
    wanted = {"host": "hostname", "port": "port", "user": "user", "password": "password", "dbname": "dbname"}
    return psycopg.conninfo.make_conninfo(
        **{name: config[f"database.{key}"] for name, key in wanted.items() if f"database.{key}" in config}
    )


def _audit(
    connector: Connector,
    connection: Connection[TupleRow],
    bootstrap_servers: str,
    since: datetime | None,
    wait_s: float,
    progress: Callable[[str], Progress],
) -> DatabaseAudit:
    result = DatabaseAudit(connector.name, connector.config["database.dbname"])
    snapshot = _snapshot(connection, since)
    result.rows = len(snapshot.rows)
    absent, beyond = _absent(snapshot.rows, bootstrap_servers, progress)
    deadline = time.monotonic() + wait_s
    confirmed = _confirmed(connection, connector, snapshot.lsn)
    while absent and not confirmed and time.monotonic() < deadline:
        time.sleep(0.5)
        confirmed = _confirmed(connection, connector, snapshot.lsn)
    if absent:
        absent, beyond = _absent({row.id: row for row in absent}, bootstrap_servers, progress)
    result.beyond_retention = len(beyond)
    if confirmed:
        result.missing = [row.missing() for row in sorted(absent, key=lambda row: (row.created_at, row.id))]
    else:
        result.under_way = len(absent)
    result.no_gap_up_to = _time(min((row.created_at for row in absent), default=snapshot.at))
    _look_at_slot(connector, connection, result)
    _look_at_drift(connector, connection, result)
    return result


def _snapshot(connection: Connection[TupleRow], since: datetime | None) -> _Snapshot:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = connection.execute(
            "SELECT id, topic, aggregateid, type, created_at FROM fluxora.outbox "
            "WHERE %(since)s::timestamptz IS NULL OR created_at >= %(since)s",
            {"since": since},
        ).fetchall()
        # After the snapshot: whatever it shows was committed before this position.
        at = connection.execute("SELECT clock_timestamp(), pg_current_wal_lsn()::text").fetchone()
    assert at is not None
    return _Snapshot({row[0]: _Row(*row) for row in rows}, at[0], at[1])


def _absent(
    rows: dict[UUID, _Row], bootstrap_servers: str, progress: Callable[[str], Progress]
) -> tuple[list[_Row], list[_Row]]:
    """Those of ``rows`` that are not in their topics; and those whose topics no longer reach back so far."""
    by_topic: dict[str, dict[str, _Row]] = defaultdict(dict)
    for row in rows.values():
        by_topic[row.topic][str(row.id)] = row
    absent: list[_Row] = []
    beyond: list[_Row] = []
    for topic, wanted in sorted(by_topic.items()):
        oldest = min(row.created_at for row in wanted.values()) - _CLOCK_SKEW
        with TopicReader(bootstrap_servers, topic) as reader:
            try:
                ranges = reader.ranges(since=round(oldest.timestamp() * 1000))
            except TopicUnavailable:
                absent += wanted.values()
                continue
            for message in reader.read(ranges, progress(topic)):
                wanted.pop(_event_id(message), None)
            kept_since = _kept_since(reader) if wanted else None
        for row in wanted.values():
            (beyond if kept_since is not None and row.created_at < kept_since else absent).append(row)
    return absent, beyond


def _kept_since(reader: TopicReader) -> datetime | None:
    """The time before which retention has removed records of some partition; ``None``: nothing was removed."""
    oldest = [next(iter(reader.read([one.first()]))).timestamp()[1] for one in reader.ranges() if one.start > 0]
    return datetime.fromtimestamp(max(oldest) / 1000, UTC) + _CLOCK_SKEW if oldest else None


def _event_id(message: Message) -> str:
    for name, value in headers_of(message):
        if name == "ce_id" and value is not None:
            return value.decode("utf-8", "replace")
    return ""


def _confirmed(connection: Connection[TupleRow], connector: Connector, lsn: str) -> bool:
    """Whether Debezium has confirmed the log up to ``lsn``: what was written before is in Kafka, or is lost."""
    row = connection.execute(
        "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
        (lsn, connector.config["slot.name"]),
    ).fetchone()
    # Without a slot nothing more will come.
    return row is None or bool(row[0])


def _look_at_slot(connector: Connector, connection: Connection[TupleRow], result: DatabaseAudit) -> None:
    name = connector.config["slot.name"]
    row = connection.execute(
        "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint, "
        "pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    ).fetchone()
    if row is None:
        result.problems.append(f"the replication slot {name} is gone: rows written since then do not reach Kafka")
        return
    active, status, result.lag_bytes, result.retained_bytes = row
    if status == "lost":
        result.problems.append(f"the slot {name} has lost its log (max_slot_wal_keep_size): rows are missing")
    elif not active:
        result.problems.append(f"nobody reads the slot {name}: connector {connector.name} is {connector.state}")


def _look_at_drift(connector: Connector, connection: Connection[TupleRow], result: DatabaseAudit) -> None:
    if not connector.running:
        failed = "".join(f": {failure.summary}" for failure in connector.failures[:1])
        result.problems.append(f"connector {connector.name} is {connector.state}, its tasks {connector.tasks}{failed}")
    config = connector.config
    url = f"postgresql://{config['database.hostname']}:{config['database.port']}/{config['database.dbname']}"
    wanted = configuration(url)
    for key in sorted(set(wanted) | set(config)):
        if key not in _TUNING and config.get(key) != wanted.get(key):
            result.problems.append(f"connector {connector.name}: {key} is {config.get(key)!r}, not {wanted.get(key)!r}")
    published = connection.execute(
        "SELECT p.pubinsert, p.pubupdate OR p.pubdelete OR p.pubtruncate, p.puballtables, "
        "ARRAY(SELECT schemaname || '.' || tablename FROM pg_publication_tables t WHERE t.pubname = p.pubname "
        "ORDER BY 1) FROM pg_publication p WHERE pubname = %s",
        (PUBLICATION,),
    ).fetchone()
    if published is None:
        result.problems.append(f"the publication {PUBLICATION} is gone: `fluxora service add` makes it")
    elif tuple(published) != (True, False, False, ["fluxora.outbox"]):
        result.problems.append(
            f"the publication {PUBLICATION} is not FOR TABLE fluxora.outbox WITH (publish = 'insert'): "
            f"insert {published[0]}, other changes {published[1]}, all tables {published[2]}, tables {published[3]}"
        )


def refill(connect: Connect, bootstrap_servers: str, found: Iterable[DatabaseAudit]) -> None:
    """Publish the missing rows from the outboxes, with the ids they have; counts them in ``refilled``.

    They come after whatever was published since, also of the same key: consumers see them late, but see them.

    Raises:
        CannotAudit: the brokers do not take them; run the audit again.
    """
    configs = {name: connector.config for name, connector in connect.connectors(PREFIX).items()}
    for one in found:
        if not one.missing:
            continue
        with psycopg.connect(conninfo(configs[one.connector]), autocommit=True, connect_timeout=5) as connection:
            one.refilled = _publish(connection, bootstrap_servers, [UUID(row.id) for row in one.missing])


def _publish(connection: Connection[TupleRow], bootstrap_servers: str, ids: list[UUID]) -> int:
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            # As Debezium's: a key has one partition whoever writes it.
            "partitioner": "murmur2_random",
            "message.max.bytes": 2 * 1024 * 1024,
        }
    )
    failed: list[str] = []
    acknowledged = 0

    def delivered(error: KafkaError | None, message: Message) -> None:
        nonlocal acknowledged
        if error is None:
            acknowledged += 1
        else:
            failed.append(f"{message.topic()}: {error.str()}")

    rows = connection.execute(
        "SELECT id, aggregateid, type, payload, topic, source, traceparent, content_type, specversion, "
        "(extract(epoch FROM created_at) * 1000000)::bigint FROM fluxora.outbox WHERE id = ANY(%s) "
        "ORDER BY created_at, id",
        (ids,),
    )
    for id, key, type, payload, topic, source, traceparent, content_type, specversion, micros in rows:
        while True:
            try:
                producer.produce(
                    topic,
                    payload,
                    key,
                    headers=event_headers(id, type, source, traceparent, content_type, specversion, micros),
                    on_delivery=delivered,
                )
                break
            except BufferError:  # full until the brokers have acknowledged, or refused, some
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(_FLUSH_S)
    if failed or left:
        raise CannotAudit(f"{acknowledged} of {len(ids)} rows were published, then: {failed[:1] or 'no answer'}")
    return acknowledged


def event_headers(
    id: UUID, type: str, source: str, traceparent: str | None, content_type: str, specversion: str, micros: int
) -> list[tuple[str, str | bytes | None]]:
    """The headers that Debezium's EventRouter makes of a row (connectors.debezium; a test compares them)."""
    at = datetime.fromtimestamp(micros / 1_000_000, UTC)
    return [
        ("id", str(id).encode()),
        ("ce_id", str(id).encode()),
        ("ce_type", type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", at.isoformat(timespec="microseconds").replace("+00:00", "Z").encode()),
        ("ce_specversion", specversion.encode()),
        ("traceparent", None if traceparent is None else traceparent.encode()),
        ("content-type", content_type.encode()),
    ]


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_json(found: Iterable[DatabaseAudit]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [
        {name: getattr(one, name) for name in DatabaseAudit.__slots__ if name != "missing"}
        | {"missing": [{name: getattr(row, name) for name in Missing.__slots__} for row in one.missing]}
        for one in found
    ]
