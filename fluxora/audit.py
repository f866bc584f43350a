"""``fluxora audit``: is every row of every outbox in its topic? And is anything about to go wrong with that?

Debezium is asked nothing: the ids in each outbox are compared with the ids in the topics. The rows are those that one
snapshot of the database shows; a row that is not in its topic is missing for certain once Debezium has confirmed more
of the write-ahead log than had been written at that moment (the watermark). Read-only, but for ``refill``.
"""

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from confluent_kafka import Message
from psycopg import Connection
from psycopg.rows import TupleRow

from connectors import Connect, configuration
from connectors.connect import Connector
from connectors.debezium import PREFIX, database_url, slot_name
from fluxora.awaited import AwaitedRows, Row
from fluxora.sending import NotSent, Sender
from fluxora.topic_reader import NoSuchTopic, Progress, TopicReader, headers_of
from participant.settings import CONNECT
from participant.tables import PUBLICATION
from schemas import FluxoraError

#: Clocks of the databases and of the brokers differ by less.
_CLOCK_SKEW = timedelta(minutes=10)
#: Of the connector's configuration, what may differ from ours: tuning, and secrets that Connect may hide.
_TUNING = frozenset(
    {"name", "poll.interval.ms", "max.batch.size", "heartbeat.interval.ms", "database.password", "database.user"}
)
#: Rows without payloads, and with them (960 KiB each at most), that a database gives at once.
_ROWS_AT_ONCE = 2_000
_PAYLOADS_AT_ONCE = 20


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
    missing_rows: int = 0
    #: Of the missing rows the oldest, as many as were asked for.
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
        return not self.missing_rows and not self.problems and not self.under_way


@dataclass(frozen=True, slots=True)
class _Snapshot:
    #: Its rows.
    rows: int
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
    limit: int,
    refill: bool,
    progress: Callable[[str], Progress],
) -> list[DatabaseAudit]:
    """Audit the outbox of every database that has a connector of ours. Rows are held on disk (``fluxora.awaited``).

    Args:
        since: rows from this time on; ``None``: all that the outboxes hold.
        wait_s: how long to wait for rows that have not arrived yet.
        only: the name of one database.
        limit: of the missing rows of a database, how many are named at most; all are counted.
        refill: publish the missing rows from the outbox, all of them, with the ids they have. They come after
            whatever was published since, also of the same key: consumers see them late, but see them.
        progress: gives a progress function for a piece of work.

    Raises:
        CannotAudit: a database does not answer, or there is none; or the brokers do not take what is refilled: then
            run the audit again.
    """
    found = []
    for connector in connect.connectors(PREFIX).values():
        if only is not None and connector.config.get("database.dbname") != only:
            continue
        try:
            url = database_url(connector.config)
        except ValueError as error:
            raise CannotAudit(f"connector {connector.name}: {error}") from error
        try:
            with psycopg.connect(url, autocommit=True, **CONNECT) as connection:
                with AwaitedRows() as rows:
                    one = _compare(connector, connection, bootstrap_servers, rows, since, wait_s, progress)
                    one.missing = [_missing(row) for row in rows.ordered(limit)] if one.missing_rows else []
                    if refill and one.missing_rows:
                        one.refilled = _refill(connection, bootstrap_servers, rows)
                _look_at_slot(connector, connection, one)
                _look_at_drift(connector, connection, one)
                found.append(one)
        except sqlite3.Error as error:
            raise CannotAudit(
                f"the rows of connector {connector.name} cannot be kept on disk meanwhile: {error}. About 150 bytes a "
                "row are needed in the folder that SQLITE_TMPDIR names (default: TMPDIR)"
            ) from error
        except psycopg.Error as error:
            raise CannotAudit(f"the database of connector {connector.name}: {error}") from error
    if not found:
        raise CannotAudit(
            "Connect has no connector of ours"
            + ("" if only is None else f" for a database {only!r}")
            + "; `fluxora init` and `fluxora service add` make them"
        )
    return found


def _compare(
    connector: Connector,
    connection: Connection[TupleRow],
    bootstrap_servers: str,
    rows: AwaitedRows,
    since: datetime | None,
    wait_s: float,
    progress: Callable[[str], Progress],
) -> DatabaseAudit:
    """Leave in ``rows`` those that are in no topic, and count."""
    result = DatabaseAudit(connector.name, connector.config["database.dbname"])
    snapshot = _snapshot(connection, rows, since)
    result.rows = snapshot.rows
    result.beyond_retention = _take_out_arrived(rows, bootstrap_servers, progress)
    deadline = time.monotonic() + wait_s
    confirmed = _confirmed(connection, connector, snapshot.lsn)
    while len(rows) and not confirmed and time.monotonic() < deadline:
        time.sleep(0.5)
        confirmed = _confirmed(connection, connector, snapshot.lsn)
    result.beyond_retention += _take_out_arrived(rows, bootstrap_servers, progress)
    if confirmed:
        result.missing_rows = len(rows)
    else:
        result.under_way = len(rows)
    result.no_gap_up_to = _time(rows.oldest() or snapshot.at)
    return result


def _snapshot(connection: Connection[TupleRow], rows: AwaitedRows, since: datetime | None) -> _Snapshot:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The transaction's begin: what the snapshot does not show was not there yet.
        at = connection.execute("SELECT now()").fetchone()
        with connection.cursor(name="audited") as cursor:
            cursor.itersize = _ROWS_AT_ONCE
            cursor.execute(
                "SELECT id, topic, aggregateid, type, created_at FROM fluxora.outbox "
                "WHERE %(since)s::timestamptz IS NULL OR created_at >= %(since)s",
                {"since": since},
            )
            rows.add(Row(*row) for row in cursor)
        # After the snapshot: whatever it shows was committed before this position.
        lsn = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert at is not None and lsn is not None
    return _Snapshot(len(rows), at[0], lsn[0])


def _take_out_arrived(rows: AwaitedRows, bootstrap_servers: str, progress: Callable[[str], Progress]) -> int:
    """Take out those that are in their topics, and those that are older than what their topics still hold; returns
    how many the latter are."""
    beyond = 0
    for topic, oldest in rows.topics():
        with TopicReader(bootstrap_servers, topic) as reader:
            try:
                ranges = reader.ranges(since=round((oldest - _CLOCK_SKEW).timestamp() * 1000))
            except NoSuchTopic:
                continue
            rows.arrived(topic, (_event_id(message) for message in reader.read(ranges, progress(topic))))
            kept_since = _kept_since(reader) if rows.any_of(topic) else None
        if kept_since is not None:
            beyond += rows.leave_out(topic, kept_since)
    return beyond


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
        (lsn, slot_name(connector.name, connector.config)),
    ).fetchone()
    # Without a slot nothing more will come.
    return row is None or bool(row[0])


def _look_at_slot(connector: Connector, connection: Connection[TupleRow], result: DatabaseAudit) -> None:
    name = slot_name(connector.name, connector.config)
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
    wanted = configuration(database_url(config))
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


def _refill(connection: Connection[TupleRow], bootstrap_servers: str, rows: AwaitedRows) -> int:
    sender = Sender(bootstrap_servers)
    try:
        missing = rows.ordered()
        while ids := [row.id for row in itertools.islice(missing, _ROWS_AT_ONCE)]:
            _publish(connection, sender, ids)
        sender.finish()
    except NotSent as error:
        raise CannotAudit(f"{sender.acknowledged} of {len(rows)} rows were published, then: {error}") from error
    return sender.acknowledged


def _publish(connection: Connection[TupleRow], sender: Sender, ids: Sequence[UUID]) -> None:
    with connection.transaction(), connection.cursor(name="refilled") as cursor:
        cursor.itersize = _PAYLOADS_AT_ONCE
        cursor.execute(
            "SELECT id, aggregateid, type, payload, topic, source, traceparent, content_type, specversion, "
            "(extract(epoch FROM created_at) * 1000000)::bigint FROM fluxora.outbox WHERE id = ANY(%s) "
            "ORDER BY created_at, id",
            (ids,),
        )
        for id, key, type, payload, topic, source, traceparent, content_type, specversion, micros in cursor:
            headers = event_headers(id, type, source, traceparent, content_type, specversion, micros)
            sender.send(topic, payload, key, headers)


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


def _missing(row: Row) -> Missing:
    return Missing(str(row.id), row.topic, row.key, row.type, _time(row.created_at))


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_json(found: Iterable[DatabaseAudit]) -> list[dict[str, Any]]:
    """For ``--json``."""
    return [
        {name: getattr(one, name) for name in DatabaseAudit.__slots__ if name != "missing"}
        | {"missing": [{name: getattr(row, name) for name in Missing.__slots__} for row in one.missing]}
        for one in found
    ]
