"""Kafka records as they leave, and what all of them have in common."""

from dataclasses import dataclass
from datetime import UTC, datetime

EVENTS_TOPIC = "fluxora.transactions.events"
HTTP_COMMANDS_TOPIC = "fluxora.http.commands"
SOURCE = "/fluxora/saga-processors"

Header = tuple[str, str | bytes | None]


@dataclass(frozen=True, slots=True)
class KafkaRecord:
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
        ("ce_specversion", b"1.0"),
        ("ce_id", id.encode()),
        ("ce_type", type.encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_time", from_ms(at).isoformat().encode()),
        ("content-type", b"application/avro"),
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return KafkaRecord(topic, transaction_id.encode(), value, headers)


def command_id(transaction_id: str, subject: str, operation: str, attempt: int) -> str:
    """The same for every copy of a command, so that receivers drop the second one."""
    return f"{transaction_id}:{subject}:{operation.lower()}:{attempt}"


def to_ms(time: datetime) -> int:
    """A point in time in ms since the epoch."""
    return round(time.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """The inverse of :func:`to_ms`, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
