"""A message as REST shows it, from its row. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from outbox_relay.messages.store import Status


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """Its shape is ``models.MessageSummary``."""
    delivered = row["status"] == Status.DELIVERED
    return {
        "message_id": row["id"],
        "destination_service": row["destination"],
        "routed_to": row["routed_to"],
        "key": row["key"],
        "type": row["type"],
        "status": row["status"],
        "processed": delivered,
        "created_at": time(row["created_at"]),
        "processed_at": time(row["ended_at"]) if delivered else None,
        "failed_at": time(row["ended_at"]) if row["status"] == Status.FAILED else None,
        "retry_count": row["retry_count"],
        "redeliveries": row["redeliveries"],
        "last_error": row["last_error"],
        # While it is claimed, `due` is the end of the lease.
        "next_attempt_at": time(row["due"]) if row["claim"] is None else None,
        "handed_to_kafka_at": time(row["handed_at"]),
    }


def view(row: Mapping[str, Any]) -> dict[str, Any]:
    """Its shape is ``models.MessageView``."""
    # Parsing and writing it anew would cost digits and time.
    return {**summary(row), "payload": orjson.Fragment(row["payload"])}


def time(at: datetime | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")
