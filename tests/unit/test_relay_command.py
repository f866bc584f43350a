"""Commands and replies as they travel."""

import re
import uuid
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_relay.command import HttpCommand, header_value, traceparent_of
from outbox_relay.outcome import Operation, Outcome, Verdict
from participant.command import Json
from schemas import SCHEMAS

ID = str(uuid.uuid4())
RECORD: dict[str, Any] = {
    "command_id": f"{ID}:pay:action:2",
    "transaction_id": ID,
    "subject": "pay",
    "operation": "ACTION",
    "attempt": 2,
    "idempotency_key": f"{ID}:pay:action",
    "service_name": "payments",
    "service_url": None,
    "endpoint": "/pay",
    "body": '{"ü": 1}',
    "timeout_ms": 1500,
    "expires_at": datetime(2026, 1, 1, tzinfo=UTC),
}


def test_a_command_is_read() -> None:
    command = HttpCommand.from_record(RECORD, "00-ab-cd-01")
    assert command.body == '{"ü": 1}'.encode()
    assert command.timeout_s == 1.5
    assert command.http_headers() == {
        "Idempotency-Key": f"{ID}:pay:action",
        "Fluxora-Transaction-Id": ID,
        "Fluxora-Step": "pay",
        "Fluxora-Operation": "ACTION",
        "Fluxora-Attempt": "2",
        "Fluxora-Command-Id": f"{ID}:pay:action:2",
        "traceparent": "00-ab-cd-01",
    }


def test_a_participant_is_named_as_one() -> None:
    headers = HttpCommand.from_record({**RECORD, "operation": "COMMIT"}).http_headers()
    assert headers["Fluxora-Participant"] == "pay"
    assert "Fluxora-Step" not in headers
    # Nobody traced it so far: the trace is found by the transaction's id, and the call's parent is its own.
    assert headers["traceparent"] == traceparent_of(RECORD["transaction_id"], RECORD["command_id"])
    assert re.fullmatch(f"00-{uuid.UUID(RECORD['transaction_id']).hex}-[0-9a-f]{{16}}-01", headers["traceparent"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command_id", ""),
        ("command_id", "x" * 501),
        ("subject", "a\0b"),
        ("idempotency_key", ""),
        ("transaction_id", "x"),
        ("operation", "EXPLODE"),
        ("timeout_ms", 0),
    ],
)
def test_a_command_that_breaks_a_rule_is_poison(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"is empty, over|badly formed|EXPLODE|timeout_ms is 0"):
        HttpCommand.from_record({**RECORD, field: value})


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_header_carries_any_text_and_different_ones_differ(one: str, other: str) -> None:
    one, other = (text.encode("utf-8", "replace").decode() for text in (one, other))
    value = header_value(one)
    assert value.isascii()
    assert not set(value) & set(" \r\n\0")
    assert (value == header_value(other)) == (one == other)


@pytest.mark.parametrize("operation", Operation)
def test_a_reply_fits_its_schema(operation: Operation) -> None:
    command = HttpCommand.from_record({**RECORD, "operation": operation.value})
    schema, record = command.reply(Verdict(Outcome.DONE, result=Json("{}")))
    assert fastavro.validate(record, fastavro.parse_schema(SCHEMAS[schema], named_schemas={}), strict=True)
    assert record["command_id"] == RECORD["command_id"]
    headers = dict(command.reply_headers(schema, 0.0))
    assert headers["ce_type"] == schema.encode()
    assert headers["ce_time"] == b"1970-01-01T00:00:00.000+00:00"
