"""Kafka records as they leave, and what all of them have in common."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

EVENTS_TOPIC = "fluxora.transactions.events"
HTTP_COMMANDS_TOPIC = "fluxora.http.commands"
SOURCE = "/fluxora/saga-processors"

Header = tuple[str, str | bytes | None]


_SPECVERSION: Header = ("ce_specversion", b"1.0")
_SOURCE: Header = ("ce_source", SOURCE.encode())
_CONTENT_TYPE: Header = ("content-type", b"application/avro")


class KafkaRecord(NamedTuple):
    topic: str
    key: bytes
    value: bytes
    headers: list[Header]


def kafka_record(
    topic: str, transaction_id: str, value: bytes, *, id: str, type: str, at: int, traceparent: str | None
) -> KafkaRecord:
    """A record of a transaction with the headers of CloudEvents 1.0 (Kafka protocol binding, binary content mode).

    Args:
        id: the same for every copy of the record.
        type: ``ce_type``.
        at: ``ce_time``, ms.
        traceparent: W3C Trace Context, or none.
    """
    headers: list[Header] = [
        _SPECVERSION,
        ("ce_id", id.encode()),
        _ce_type(type),
        _SOURCE,
        _ce_time(at),
        _CONTENT_TYPE,
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return KafkaRecord(topic, transaction_id.encode(), value, headers)


@lru_cache(maxsize=100)
def _ce_type(type: str) -> Header:
    return "ce_type", type.encode()


@lru_cache(maxsize=100)
def _ce_time(at: int) -> Header:
    """The effects of one input, and often those of one batch, have the same time."""
    return "ce_time", from_ms(at).isoformat().encode()


def command_id(transaction_id: str, subject: str, operation: str, attempt: int) -> str:
    """The same for every copy of a command, so that receivers drop the second one."""
    return f"{transaction_id}:{subject}:{operation.lower()}:{attempt}"


def to_ms(time: datetime) -> int:
    """A point in time in ms since the epoch."""
    return round(time.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """The inverse of :func:`to_ms`, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
