"""Messages that leave exactly when the caller's transaction commits.

``publish`` inserts a row into ``fluxora.outbox`` in the transaction that is open on the given session or
connection; it never commits. Debezium reads the row from the write-ahead log and produces it to ``topic``.
There is no other way out, so nothing is sent for a rolled-back transaction and nothing committed is forgotten.
"""

import dataclasses
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from participant.arrays import bytea_array, text_array, uuid_array
from schemas import Codec, WrongShape

AVRO = "application/avro"
#: Bytes of one message. Kafka takes 1 MiB a record with key and headers; one record over it stops the connector
#: and every message behind it, so it is refused here, where the caller can still do something.
PAYLOAD_LIMIT = 960 * 1024
#: Characters of each of a message's texts.
TEXT_LIMIT = 1_000
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

# One INSERT writes a WAL record a row, as Debezium needs; COPY would not (PROTOTYPE.md, "Traps met").
_INSERT = text("""
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT * FROM unnest(
        CAST(:id AS uuid[]), CAST(:aggregatetype AS text[]), CAST(:aggregateid AS text[]), CAST(:type AS text[]),
        CAST(:payload AS bytea[]), CAST(:topic AS text[]), CAST(:source AS text[]),
        CAST(:traceparent AS text[]), CAST(:content_type AS text[]))
""")

#: A record to be encoded, or bytes that are encoded already.
Event = Mapping[str, Any] | bytes | object


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One row of the outbox, encoded."""

    #: where Debezium sends it
    topic: str
    #: Kafka key: messages of one key stay in order
    key: str
    #: full name of the record's schema; ``ce_type``
    type: str
    payload: bytes
    #: ``ce_source``
    source: str
    #: W3C Trace Context, or none
    traceparent: str | None = None
    content_type: str = AVRO
    #: ``ce_id``: receivers drop a second copy by it
    id: uuid.UUID = dataclasses.field(default_factory=uuid7)


@lru_cache(maxsize=1)
def default_codec() -> Codec:
    """The codec of ``SCHEMA_REGISTRY_URL``, made once."""
    url = os.environ.get("SCHEMA_REGISTRY_URL")
    if not url:
        raise WrongShape("SCHEMA_REGISTRY_URL is not set and no codec was given: nothing to encode the event with")
    return Codec(url)


def publish(
    session_or_connection: Session | Connection,
    event: Event,
    *,
    topic: str,
    key: str,
    type: str,
    source: str | None = None,
    traceparent: str | None = None,
    id: uuid.UUID | None = None,
    codec: Codec | None = None,
    content_type: str = AVRO,
) -> uuid.UUID:
    """Put one event into the outbox, in the caller's transaction, and return its id.

    Args:
        event: a mapping or dataclass, encoded by the schema ``type``; or bytes, sent as they are.
        topic: Kafka topic; one that does not exist is made by the connector, with the broker's defaults.
        key: Kafka key. Events of one key arrive in the order of their commits.
        source: ``ce_source``; by default the ``FLUXORA_SERVICE`` of the environment, or ``fluxora``.
        id: give the same one to publish the same event again; a UUIDv7 by default.

    Raises:
        WrongShape: the event does not fit its schema, or the message breaks a limit. Nothing was written.
        RegistryUnavailable: the schema's id is not cached yet and the registry does not answer.
    """
    message = Message(
        topic=topic,
        key=key,
        type=type,
        payload=_encode(event, type, codec),
        source=source or os.environ.get("FLUXORA_SERVICE", "fluxora"),
        traceparent=traceparent,
        content_type=content_type,
        id=uuid7() if id is None else id,
    )
    publish_many(session_or_connection, [message])
    return message.id


def publish_many(session_or_connection: Session | Connection, messages: Sequence[Message]) -> None:
    """Put messages into the outbox with one statement, in their order. Raises WrongShape as ``publish`` does."""
    if not messages:
        return
    for message in messages:
        _check(message)
    session_or_connection.execute(
        _INSERT,
        {
            "id": uuid_array(message.id for message in messages),
            # EventRouter wants the column; routing is by `topic`.
            "aggregatetype": text_array(message.type for message in messages),
            "aggregateid": text_array(message.key for message in messages),
            "type": text_array(message.type for message in messages),
            "payload": bytea_array(message.payload for message in messages),
            "topic": text_array(message.topic for message in messages),
            "source": text_array(message.source for message in messages),
            "traceparent": text_array(message.traceparent for message in messages),
            "content_type": text_array(message.content_type for message in messages),
        },
    )


def _encode(event: Event, type: str, codec: Codec | None) -> bytes:
    if isinstance(event, bytes):
        return event
    if dataclasses.is_dataclass(event) and not isinstance(event, _CLASS):
        event = dataclasses.asdict(event)
    if not isinstance(event, Mapping):
        raise WrongShape(f"an event is a mapping, a dataclass or bytes, not {event.__class__.__name__}")
    return (codec or default_codec()).encode(type, event)


#: ``type`` is a parameter's name here.
_CLASS = type


def _check(message: Message) -> None:
    if not _TOPIC.fullmatch(message.topic) or message.topic in (".", ".."):
        raise WrongShape(f"{message.topic!r} is no Kafka topic name (1 to 249 of letters, digits, '.', '_', '-')")
    texts = (message.key, message.type, message.source, message.traceparent, message.content_type)
    if any(value is not None and ("\x00" in value or len(value) > TEXT_LIMIT) for value in texts):
        raise WrongShape(
            f"key, type, source, traceparent or content_type is over {TEXT_LIMIT} characters, or holds a NUL, which "
            "PostgreSQL cannot store"
        )
    if not message.key:
        raise WrongShape("the key is empty: events without a key would lose their order")
    if len(message.payload) > PAYLOAD_LIMIT:
        raise WrongShape(f"the payload is {len(message.payload)} bytes; {PAYLOAD_LIMIT} may be")
