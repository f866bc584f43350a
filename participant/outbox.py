"""Messages that leave exactly when the caller's transaction commits.

``publish`` inserts a row into ``fluxora.outbox`` in the transaction that is open on the given session or
connection, ``publish_many`` several with one statement; they never commit. Debezium reads the rows from the write-ahead
log and produces each to its ``topic``.
There is no other way out, so nothing is sent for a rolled-back transaction and nothing committed is forgotten.
"""

import dataclasses
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from participant.arrays import bytea_array, text_array, uuid_array
from participant.events import EventType, declared_type, type_of
from participant.handling import current, current_traceparent
from schemas import Codec, WrongShape, register_types

AVRO = "application/avro"
#: Bytes of one message. Kafka takes 1 MiB a record with key and headers; one record over it stops the connector
#: and every message behind it, so it is refused here, where the caller can still do something.
PAYLOAD_LIMIT = 960 * 1024
#: Characters of each of a message's texts.
TEXT_LIMIT = 1_000
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

# One INSERT writes a WAL record a row, as Debezium needs; COPY would not (PROTOTYPE.md, "Traps met").
_INSERT = """
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT * FROM unnest(
        CAST(%s AS uuid[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS bytea[]),
        CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]), CAST(%s AS text[]))
"""

INSERT_ONE = """
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    VALUES (%b, %s, %s, %s, %b, %s, %s, %s, %s)
"""

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
    return Codec(_registry_url())


def _registry_url() -> str:
    url = os.environ.get("SCHEMA_REGISTRY_URL")
    if not url:
        raise WrongShape("SCHEMA_REGISTRY_URL is not set and no codec was given: nothing to encode the event with")
    return url


def publish(
    session_or_connection: Session | Connection,
    event: Event,
    *,
    type: str | EventType | None = None,
    topic: str | None = None,
    key: str | None = None,
    source: str | None = None,
    traceparent: str | None = None,
    id: uuid.UUID | None = None,
    codec: Codec | None = None,
    content_type: str = AVRO,
) -> uuid.UUID:
    """Put one event into the outbox, in the caller's transaction, and return its id.

    Arguments and errors as of ``message`` and ``publish_many``. When it raises, nothing was written.
    """
    made = message(
        event,
        type=type,
        topic=topic,
        key=key,
        source=source,
        traceparent=traceparent,
        id=id,
        codec=codec,
        content_type=content_type,
    )
    publish_many(session_or_connection, [made])
    return made.id


def message(
    event: Event,
    *,
    type: str | EventType | None = None,
    topic: str | None = None,
    key: str | None = None,
    source: str | None = None,
    traceparent: str | None = None,
    id: uuid.UUID | None = None,
    codec: Codec | None = None,
    content_type: str = AVRO,
) -> Message:
    """Make the message of one event, for ``publish_many``; nothing is written.

    Args:
        event: an instance of a class declared with ``@event_type``, which says the rest; a mapping, with ``type``; any
            dataclass, with ``type``; or bytes, sent as they are, with ``type``, ``topic`` and ``key``.
        type: a declared type, or the full name of a schema that the codec knows; then ``topic`` and ``key`` are needed.
        topic: Kafka topic; one that does not exist is made by the connector, with the broker's defaults.
        key: Kafka key. Events of one key arrive in the order of their commits.
        source: ``ce_source``; by default the service whose handler runs, else the ``FLUXORA_SERVICE`` of the
            environment, else ``fluxora``.
        traceparent: W3C Trace Context; by default that of OpenTelemetry's current span, else, in a handler, that of the
            command or event in hand.
        id: give the same one to publish the same event again; a UUIDv7 by default.

    Raises:
        WrongShape: type, topic or key are missing, or the event does not fit its schema.
        InvalidSchema: its type has the name of another one.
        RegistryUnavailable: the schema's id is not cached yet and the registry does not answer, or does not have it
            (``register`` at the service's start sees to both).
    """
    declared = type if isinstance(type, EventType) else declared_type(event) if type is None else None
    if declared is not None:
        record = declared.record(event)
        topic = topic or declared.topic
        key = declared.key_of(record) if key is None else key
        payload = _codec_of(declared, codec).encode(declared.name, record)
        name = declared.name
    elif isinstance(type, str) and topic is not None and key is not None:
        payload, name = _encode(event, type, codec), type
    else:
        raise WrongShape(
            "an event needs a type, a topic and a key: give an instance of a class declared with @event_type, or "
            "type=EventType…, or all three"
        )
    handled = current()
    return Message(
        topic=topic,
        key=key,
        type=name,
        payload=payload,
        source=source or (os.environ.get("FLUXORA_SERVICE", "fluxora") if handled is None else handled.service),
        traceparent=traceparent or current_traceparent(),
        content_type=content_type,
        id=uuid7() if id is None else id,
    )


def register(*types: EventType | type, codec: Codec | None = None, registry_url: str | None = None) -> None:
    """Register the schemas of types and cache their ids: at a service's start, so that publishing needs no registry.

    Args:
        types: EventTypes, or classes declared with ``@event_type``.
        registry_url: ``SCHEMA_REGISTRY_URL`` by default.

    Raises:
        IncompatibleSchema: it would break readers of the registered version.
        InvalidSchema, RegistryUnavailable: as ``publish``.
    """
    declared = [type_of(one) for one in types]
    register_types(registry_url or _registry_url(), [one.schema for one in declared])
    for one in declared:
        _codec_of(one, codec).prepare(one.name)


def _codec_of(declared: EventType, codec: Codec | None) -> Codec:
    codec = codec or _default()
    codec.add(declared.schema)
    return codec


def _default() -> Codec:
    handled = current()
    return default_codec() if handled is None else handled.codec


def publish_many(session_or_connection: Session | Connection, messages: Sequence[Message]) -> None:
    """Put messages into the outbox with one statement, in their order. Raises WrongShape if one breaks a limit."""
    if not messages:
        return
    for one in messages:
        _check(one)
    connection = session_or_connection
    if isinstance(connection, Session):
        connection = connection.connection()
    # Past SQLAlchemy's compiler, not past its connection: errors are told, and a batch's guard sees it, as ever.
    if len(messages) == 1:
        connection.exec_driver_sql(INSERT_ONE, _columns(messages[0]))
        return
    columns = zip(*map(_columns, messages), strict=True)
    arrays = tuple(array(column) for array, column in zip(_ARRAYS, columns, strict=True))
    connection.exec_driver_sql(_INSERT, arrays)


def _columns(one: Message) -> tuple[uuid.UUID, str, str, str, bytes, str, str, str | None, str]:
    """As the statements name them. EventRouter wants aggregatetype; routing is by ``topic``."""
    return one.id, one.type, one.key, one.type, one.payload, one.topic, one.source, one.traceparent, one.content_type


#: What makes an array of each of the columns.
_ARRAYS: tuple[Callable[[Iterable[Any]], str], ...] = (
    uuid_array,
    text_array,
    text_array,
    text_array,
    bytea_array,
    text_array,
    text_array,
    text_array,
    text_array,
)


def _encode(event: Event, type: str, codec: Codec | None) -> bytes:
    if isinstance(event, bytes):
        return event
    if dataclasses.is_dataclass(event) and not isinstance(event, _CLASS):
        event = dataclasses.asdict(event)
    if not isinstance(event, Mapping):
        raise WrongShape(f"an event is a mapping, a dataclass or bytes, not {event.__class__.__name__}")
    return (codec or _default()).encode(type, event)


#: ``type`` is a parameter's name here.
_CLASS = type


def _check(message: Message) -> None:
    if not _is_topic(message.topic):
        raise WrongShape(f"{message.topic!r} is no Kafka topic name (1 to 249 of letters, digits, '.', '_', '-')")
    for value in (message.key, message.type, message.source, message.traceparent, message.content_type):
        if value is not None and (len(value) > TEXT_LIMIT or "\x00" in value):
            raise WrongShape(
                f"key, type, source, traceparent or content_type is over {TEXT_LIMIT} characters, or holds a NUL, "
                "which PostgreSQL cannot store"
            )
    if not message.key:
        raise WrongShape("the key is empty: events without a key would lose their order")
    if len(message.payload) > PAYLOAD_LIMIT:
        raise WrongShape(
            f"the payload is {len(message.payload)} bytes; {PAYLOAD_LIMIT} may be, because Kafka refuses larger "
            "records: store the data elsewhere and publish where it is"
        )


@lru_cache(maxsize=1000)
def _is_topic(name: str) -> bool:
    return _TOPIC.fullmatch(name) is not None and name not in (".", "..")
