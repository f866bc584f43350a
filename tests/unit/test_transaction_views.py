"""How REST and the command line show a two-phase commit."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest
from rich.console import Console

from coordinator.transaction_models import TransactionSummary, TransactionView
from coordinator.transaction_views import TransactionRow, names, summary, view
from fluxora.tx_cli import draw
from saga_processors.codec import progress_to_json
from saga_processors.machine import Request
from saga_processors.transaction import (
    Operation,
    Outcome,
    ParticipantAddRequested,
    ParticipantReplied,
    Transaction,
    TransactionStarted,
    TransactionState,
    VerbRequested,
    advance,
)
from saga_processors.transaction_codec import definition_from_record
from saga_processors.transaction_definition import ParticipantDefinition, Policy, Transport

AT = datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC)
AT_MS = int(AT.timestamp() * 1000)


def participant(name: str, **more: Any) -> dict[str, Any]:
    return {
        "service_name": name,
        "transport": "KAFKA",
        "service_url": None,
        "prepare_endpoint": "/transaction/prepare",
        "commit_endpoint": "/transaction/commit",
        "abort_endpoint": "/transaction/abort",
        "payload": '{"n":12345678901234567890123}',
    } | more


RECORD: dict[str, Any] = {
    "timeout_ms": 30_000,
    "auto_commit": False,
    "metadata": '{"order":1.10}',
    "participants": [participant("billing")],
    "traceparent": None,
}


def folded(*inputs: Any) -> Transaction:
    machine: Transaction | None = None
    for one in (TransactionStarted(definition_from_record(RECORD, Policy())), *inputs):
        machine = advance(machine, one, AT_MS).machine
    assert machine is not None
    return machine


def row(machine: Transaction | None) -> TransactionRow:
    return TransactionRow(
        id=uuid4(),
        state=TransactionState.STARTED if machine is None else machine.state,
        definition=RECORD,
        progress=None if machine is None else orjson.loads(orjson.dumps(progress_to_json(machine))),
        needs_attention=False,
        parked=False,
        created_at=AT,
        updated_at=AT,
    )


def shown(one: TransactionRow) -> dict[str, Any]:
    body = orjson.dumps(view(one))
    TransactionView.model_validate_json(body)
    whole: dict[str, Any] = orjson.loads(body)
    return whole


def test_a_transaction_that_no_processor_has_seen_has_its_participants() -> None:
    document = shown(row(None))
    assert document["state"] == "STARTED" and document["reason"] is None
    assert document["timeout_at"] == "2026-11-23T10:00:30.250000Z"
    assert [(p["service_name"], p["state"], p["attempt"]) for p in document["participants"]] == [
        ("billing", "PREPARING", 0)
    ]


def test_added_participants_come_after_those_it_began_with_and_votes_show() -> None:
    added = ParticipantDefinition(
        "forecasts", Transport.HTTP, "/p", "/c", "/a", '{"x":1}', service_url="http://127.0.0.1:1"
    )
    machine = folded(
        ParticipantAddRequested(added),
        VerbRequested(Request.PREPARE),
        ParticipantReplied("billing", Operation.PREPARE, 1, Outcome.DONE),
        ParticipantReplied("forecasts", Operation.PREPARE, 1, Outcome.REFUSED, "no room"),
    )
    document = shown(row(machine))
    assert document["state"] == "ABORTING" and document["timeout_at"] is None and "no room" in document["reason"]
    first, second = document["participants"]
    assert first["service_name"] == "billing" and first["state"] == "PREPARED"
    assert second["state"] == "FAILED" and second["reason"] == "no room"
    assert second["service_url"] == "http://127.0.0.1:1" and second["transport"] == "HTTP"
    assert names(row(machine)) == ["billing", "forecasts"]


@pytest.mark.parametrize(
    "definition",
    [
        None,
        [],
        {},
        7,
        "text",
        RECORD | {"participants": None},
        RECORD | {"participants": [{}]},
        RECORD | {"timeout_ms": "soon"},
        RECORD | {"timeout_ms": 10**20},
        RECORD | {"policy": {"no": 1}},
    ],
)
@pytest.mark.parametrize("progress", [None, {}, {"participants": [{}]}, ["x"]])
def test_a_transaction_whose_definition_cannot_be_read_is_shown_without_participants(
    definition: Any, progress: Any
) -> None:
    broken = replace(row(None), definition=definition, progress=progress, state=TransactionState.COMMITTING)
    document = shown(broken)
    assert document["reason"] == "what is stored of its definition cannot be read"
    assert (document["state"], document["participants"]) == ("COMMITTING", [])
    assert names(broken) == []


def test_a_transaction_whose_progress_cannot_be_read_is_shown_as_it_began() -> None:
    document = shown(replace(row(None), progress={"participants": [{"state": "?"}]}))
    assert document["reason"] == "what is stored of its progress cannot be read"
    assert [(p["service_name"], p["state"]) for p in document["participants"]] == [("billing", "PREPARING")]


def test_payload_and_metadata_keep_their_digits() -> None:
    body = orjson.dumps(view(row(None)))
    assert b'{"n":12345678901234567890123}' in body and b'{"order":1.10}' in body


def test_a_summary_is_of_its_model() -> None:
    columns = {
        "id": uuid4(),
        "state": "PREPARED",
        "services": ["a", "b"],
        "needs_attention": False,
        "parked": False,
        "created_at": AT,
        "updated_at": AT,
    }
    TransactionSummary.model_validate_json(orjson.dumps(summary(columns)))


@pytest.mark.parametrize("width", [40, 120])
def test_it_is_drawn_with_what_happened_in_order(width: int) -> None:
    machine = folded(VerbRequested(Request.PREPARE))
    history = [
        {
            "at": "2026-11-23T10:00:00.250000Z",
            "type": "fluxora.TransactionStarted",
            "input": {},
            "verdict": "APPLIED",
            "reason": None,
            "state": "STARTED",
            "effects": [],
        },
        {
            "at": "2026-11-23T10:00:01.250000Z",
            "type": "fluxora.RequestMade",
            "input": {"request": "PREPARE", "who": "[ada]", "why": None},
            "verdict": "APPLIED",
            "reason": None,
            "state": "PREPARING",
            "effects": [{"ask": "PREPARE", "participant": "billing", "attempt": 1}, {"publish": "x"}],
        },
        {
            "at": "2026-11-23T10:00:01.300000Z",
            "type": "fluxora.RequestMade",
            "input": {"request": "COMMIT"},
            "verdict": "REJECTED",
            "reason": "too early",
            "state": "PREPARING",
            "effects": [],
        },
    ]
    out = io.StringIO()
    draw(shown(row(machine)), history, Console(file=out, width=width, color_system=None))
    told = " ".join(out.getvalue().split())
    assert "PREPARING" in told and "billing" in told
    assert "+1.000s prepare requested, who [ada]: PREPARING" in told
    assert "→ prepare 1 to billing" in told and "commit requested: REJECTED, too early" in told
    assert told.index("begun") < told.index("prepare requested") < told.index("commit requested")
