"""The configuration of a database's connector.

Checked against Debezium 3.7.0.Final (the definitions in its jars) and on the real stack
(tests/integration/test_connectors_*.py). What is left out keeps Debezium's default.
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from sqlalchemy import make_url

from participant.tables import PUBLICATION

#: Every connector of ours starts so; the watcher looks after these and no others.
PREFIX: Final = "fluxora_"
#: Prefix of the logical messages that move an idle slot on; they are not captured.
HEARTBEAT_MESSAGE: Final = "fluxora.heartbeat"
#: How long Debezium pauses when PostgreSQL has sent nothing, and how long it waits at its empty queue, in milliseconds:
#: latency of the first row after a pause, against CPU at rest (ARCHITECTURE.md says what each such wait may cost).
POLL_INTERVAL_MS: Final = 10
#: How often an idle database's slot moves on, so that other databases' write-ahead log can be recycled.
HEARTBEAT_INTERVAL_MS: Final = 10_000


def connector_name(database: str) -> str:
    """Return the name of the database's connector and of its slot: PostgreSQL takes [a-z0-9_]{1,63} for a slot."""
    return (PREFIX + re.sub(r"[^a-z0-9_]", "_", database.lower()))[:63]


def heartbeat_topic(connector: str) -> str:
    """Return the topic of a connector's heartbeats."""
    return f"__debezium-heartbeat.{connector}"


def configuration(
    database_url: str,
    *,
    poll_interval_ms: int = POLL_INTERVAL_MS,
    heartbeat_interval_ms: int = HEARTBEAT_INTERVAL_MS,
) -> dict[str, str]:
    """Return the connector's configuration for ``postgresql://user[:password]@host[:port]/database``."""
    url = make_url(database_url)
    if not url.database or not url.host:
        raise ValueError(f"{url.render_as_string()} names no host or no database")
    name = connector_name(url.database)
    config = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": url.host,
        "database.port": str(url.port or 5432),
        "database.user": url.username or "postgres",
        "database.dbname": url.database,
        "topic.prefix": name,
        # -- what is captured: the rows that are inserted into the outbox, nothing else -------------------------
        "plugin.name": "pgoutput",
        "slot.name": name,
        "publication.name": PUBLICATION,
        # The migration makes it; a connector that makes its own could capture more than inserts.
        "publication.autocreate.mode": "disabled",
        "schema.include.list": "fluxora",
        "table.include.list": "fluxora.outbox",
        # No snapshot: without a stored offset it streams from the slot's confirmed position. `fluxora service add`
        # makes the slot before the first row can be written, so nothing is missed.
        "snapshot.mode": "no_data",
        # -- loss is a failure, never a skip --------------------------------------------------------------------
        "slot.drop.on.stop": "false",
        # A slot that is ahead of what Kafka has was made anew, or moved by someone: rows may be lost. Fails then.
        "offset.mismatch.strategy": "trust_offset",
        "event.processing.failure.handling.mode": "fail",
        "errors.tolerance": "none",
        # -- outages end by themselves --------------------------------------------------------------------------
        "retriable.restart.connector.wait.ms": "1000",
        # The slot stays taken until the server notices that the former task is gone.
        "slot.max.retries": "60",
        "slot.retry.delay.ms": "1000",
        # -- an idle database's slot moves on (Debezium documentation, "WAL disk space consumption") ---------------
        # The heartbeat's record carries the position into Kafka; its topic must exist (``heartbeat_topic``).
        "heartbeat.interval.ms": str(heartbeat_interval_ms),
        "heartbeat.action.query": f"SELECT pg_logical_emit_message(true, '{HEARTBEAT_MESSAGE}', '')",
        "message.prefix.exclude.list": HEARTBEAT_MESSAGE.replace(".", "\\."),
        # -- latency --------------------------------------------------------------------------------------------
        "poll.interval.ms": str(poll_interval_ms),
        # A poll of Debezium's queue ends when there are so many rows, or after the interval: a row that is alone leaves
        # at once. What is under way at a time is up to the producer, not to the poll, so nothing is slower for it.
        "max.batch.size": "1",
        # -- a row becomes a record: topic, key, value and headers are columns ----------------------------------
        "transforms": "outbox",
        "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
        "transforms.outbox.route.by.field": "topic",
        "transforms.outbox.route.topic.replacement": "${routedByValue}",
        "transforms.outbox.table.field.event.key": "aggregateid",
        # CloudEvents' Kafka binding, binary mode. Its version is a column too: InsertHeader would parse the
        # literal 1.0 as a number and send "1", or, quoted, send the quotes.
        "transforms.outbox.table.fields.additional.placement": (
            "id:header:ce_id,type:header:ce_type,source:header:ce_source,created_at:header:ce_time,"
            "specversion:header:ce_specversion,"
            "traceparent:header:traceparent,content_type:header:content-type"
        ),
        "transforms.outbox.table.op.invalid.behavior": "fatal",
        "tombstones.on.delete": "false",
        # The payload's bytes as they are; heartbeats, which are no bytes, as JSON.
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "io.debezium.converters.BinaryDataConverter",
        "value.converter.delegate.converter.type": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.delegate.converter.type.schemas.enable": "false",
        "header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
        # -- a topic that is not there is made, with the broker's defaults ------------------------------------------
        # Otherwise one row with a mistyped topic would hold up every row behind it in this database.
        "topic.creation.default.partitions": "-1",
        "topic.creation.default.replication.factor": "-1",
        # -- nothing is acknowledged that a broker could lose, and order survives a retry -----------------------
        "producer.override.acks": "all",
        "producer.override.enable.idempotence": "true",
    }
    if url.password is not None:
        config["database.password"] = str(url.password)
    return config


def database_url(config: Mapping[str, str]) -> str:
    """Return the URL of a connector's database, as ``configuration`` was given it; libpq takes it too.

    Raises:
        ValueError: the configuration names no host or no database, or its port is no number.
    """
    host, database = config.get("database.hostname"), config.get("database.dbname")
    if not host or not database:
        raise ValueError("the connector's configuration names no database.hostname or no database.dbname")
    user, password = config.get("database.user"), config.get("database.password")
    # SQLAlchemy's URL leaves spaces as they are, which libpq refuses.
    who = "" if user is None else quote(user, "") + ("" if password is None else f":{quote(password, '')}") + "@"
    return f"postgresql://{who}{host}:{int(config.get('database.port', 5432))}/{quote(database, '')}"


def slot_name(connector: str, config: Mapping[str, str]) -> str:
    """Return the name of a connector's slot; ours bear the connector's name."""
    return config.get("slot.name", connector)
