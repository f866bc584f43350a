"""The relay's commands and replies, as they travel: ``fluxora.HttpCommand`` in, an input of the transaction out."""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from outbox_relay.outcome import SAGA, Operation, Verdict
from participant.command import ID_LIMIT

COMMAND = "fluxora.HttpCommand"
STEP_REPLY, PARTICIPANT_REPLY = "fluxora.StepReplied", "fluxora.ParticipantReplied"
SOURCE = "/fluxora/http-relay"
#: What follows the command's id in ``ce_id`` of its reply.
REPLY_ID_END = ":reply"

#: What a header's value holds as it is: visible ASCII, but for the sign that stands before what is not.
_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")

RecordHeader = tuple[str, str | bytes | None]


@dataclass(frozen=True, slots=True)
class HttpCommand:
    """One call to make. A second copy has the same ``command_id``."""

    command_id: str
    transaction_id: str
    #: the step, or the participant
    subject: str
    operation: Operation
    attempt: int
    idempotency_key: str
    service_name: str
    service_url: str | None
    endpoint: str
    body: bytes
    timeout_s: float
    #: seconds since the epoch
    expires_at: float
    traceparent: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any], traceparent: str | None = None) -> "HttpCommand":
        """Build it from its Avro record; ValueError or KeyError if that breaks a rule of ours."""
        for field in ("command_id", "subject", "idempotency_key"):
            if not record[field] or "\x00" in record[field] or len(record[field]) > ID_LIMIT:
                raise ValueError(f"{field} is empty, over {ID_LIMIT} characters, or holds a NUL")
        if record["timeout_ms"] <= 0:
            raise ValueError(f"timeout_ms is {record['timeout_ms']}: it is positive")
        return cls(
            command_id=record["command_id"],
            transaction_id=str(uuid.UUID(record["transaction_id"])),
            subject=record["subject"],
            operation=Operation(record["operation"]),
            attempt=record["attempt"],
            idempotency_key=record["idempotency_key"],
            service_name=record["service_name"],
            service_url=record["service_url"],
            endpoint=record["endpoint"],
            body=record["body"].encode(),
            timeout_s=record["timeout_ms"] / 1000,
            expires_at=record["expires_at"].timestamp(),
            traceparent=traceparent,
        )

    @property
    def issued_at(self) -> float:
        """When the machine decided it, s since the epoch: no copy of it, and no answer, is older."""
        return self.expires_at - self.timeout_s

    def http_headers(self) -> dict[str, str]:
        """Headers of the call. Blanks and what is not ASCII stand in them as %XX, so that different ids differ."""
        subject = "Fluxora-Step" if self.operation in SAGA else "Fluxora-Participant"
        return {
            "Idempotency-Key": header_value(self.idempotency_key),
            "Fluxora-Transaction-Id": self.transaction_id,
            subject: header_value(self.subject),
            "Fluxora-Operation": self.operation.value,
            "Fluxora-Attempt": str(self.attempt),
            "Fluxora-Command-Id": header_value(self.command_id),
            "traceparent": self.traceparent or traceparent_of(self.transaction_id, self.command_id),
        }

    def reply(self, verdict: Verdict) -> tuple[str, dict[str, Any]]:
        """Return the schema and the Avro record of what came of it."""
        common = {
            "transaction_id": self.transaction_id,
            "command_id": self.command_id,
            "operation": self.operation.value,
            "attempt": self.attempt,
            "outcome": verdict.outcome.value,
            "reason": verdict.reason,
        }
        if self.operation in SAGA:
            return STEP_REPLY, {**common, "step": self.subject, "result": verdict.result}
        return PARTICIPANT_REPLY, {**common, "participant": self.subject}

    def reply_headers(self, schema: str, at: float) -> list[RecordHeader]:
        """CloudEvents 1.0, Kafka binding in binary mode, as all inputs have them; ``at`` in s since the epoch."""
        headers: list[RecordHeader] = [
            ("ce_specversion", b"1.0"),
            ("ce_id", f"{self.command_id}{REPLY_ID_END}".encode()),
            ("ce_type", schema.encode()),
            ("ce_source", SOURCE.encode()),
            ("ce_time", datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").encode()),
            ("content-type", b"application/avro"),
        ]
        if self.traceparent is not None:
            headers.append(("traceparent", self.traceparent.encode()))
        return headers


def traceparent_of(transaction_id: str, call: str) -> str:
    """Return a W3C ``traceparent`` for what nobody traced so far: the trace has the id of the transaction, or of the
    message, so that it is found by it; a call has the same parent in all its copies."""
    parent = hashlib.blake2b(call.encode(), digest_size=8).hexdigest()
    return f"00-{uuid.UUID(transaction_id).hex}-{parent}-01"


def header_value(text: str) -> str:
    """Return ``text`` as it may stand in a header: percent-encoded where it is not visible ASCII."""
    return quote(text, safe=_VISIBLE)
