"""The shapes of ``/transactions``: they check what comes in and are the OpenAPI document.

What a transaction must be beyond its shape is in ``saga_processors.transaction_definition``, in one place for every
way in.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from coordinator.history import HistoryEntry
from coordinator.models import Name, Seconds
from saga_processors.definition import NAME
from saga_processors.transaction import ParticipantState, TransactionState
from saga_processors.transaction_definition import Transport
from web.durations import PATTERN
from web.models import Body, Time


class ParticipantRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "service_name": "billing",
                    "service_url": "http://billing.internal:8000",
                    "payload": {"account": "a-17", "amount": 12.75},
                }
            ]
        }
    )

    service_name: Name = Field(description="Unique in the transaction.")
    service_url: str | None = Field(
        default=None,
        description="Base of an HTTP service, `http(s)://host[:port][/path]`, on the configured allow-list. Without "
        "it the name is looked for in the service registry (then it is called over HTTP) and, after that, among the "
        "Kafka services (then commands go to its topic `<service_name>.commands`).",
    )
    prepare_endpoint: str = "/transaction/prepare"
    commit_endpoint: str = "/transaction/commit"
    abort_endpoint: str = "/transaction/abort"
    payload: dict[str, Any] = Field(
        default_factory=dict, description="Goes with every call: its body is `{transaction_id, …payload}`."
    )


class TransactionRequest(Body):
    """Everything may be left out, the body too."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "timeout_seconds": 30,
                    "participants": [{"service_name": "billing"}, {"service_name": "forecasts"}],
                    "metadata": {"order": "o-1"},
                }
            ]
        }
    )

    timeout_seconds: Seconds = Field(default=30.0, description="Until the decision; an undecided one aborts then.")
    participants: list[ParticipantRequest] = Field(default_factory=list)
    metadata: Any = Field(default=None, description="Any JSON of your own; shown, never read.")
    auto_commit: bool = Field(default=False, description="Commit as soon as everybody has voted yes.")
    transaction_id: UUID | None = Field(default=None, description="Your own id for it; default: a new UUIDv7.")


class VerbRequest(Body):
    """May be left out. Who asks and why is kept in the transaction's history."""

    who: str | None = Field(default=None, max_length=200)
    why: str | None = Field(default=None, max_length=1000)


class TransactionCreated(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"transaction_id": "01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e", "state": "STARTED"}]
        },
    )

    transaction_id: UUID
    state: Literal["STARTED"]


class ParticipantAdded(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    participant_added: str = Field(description="Its `service_name`.")
    transport: Transport
    state: TransactionState = Field(description="Of the transaction.")


class Accepted(BaseModel):
    """The request is durable; the machine has not decided it, or not all that it leads to has happened."""

    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    state: TransactionState = Field(description="As it is now.")


class VerbAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    state: TransactionState
    decided: bool = Field(
        description="Commit or abort is decided, for good; COMMITTING and ABORTING go on by themselves."
    )


class ParticipantView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    service_name: str
    state: ParticipantState
    transport: Transport
    service_url: str | None
    prepare_endpoint: str
    commit_endpoint: str
    abort_endpoint: str
    payload: Any
    attempt: int = Field(description="Of what it is asked for now, or was last; 0 = not asked yet.")
    reason: str | None = Field(description="Why it voted no, or why the last attempt did not succeed.")
    needs_attention: bool = Field(description="It keeps the transaction from ending.")
    timeout_at: datetime | None = Field(description="When the attempt in progress counts as unanswered.")
    retry_at: datetime | None = Field(description="When the next attempt is made.")


class TransactionView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    state: TransactionState
    participants: list[ParticipantView] = Field(description="In the order in which they were added.")
    auto_commit: bool
    metadata: Any
    needs_attention: bool = Field(description="It cannot end without help, or has tried for very long.")
    parked: bool = Field(description="An input made the machine itself fail; an operator must look.")
    reason: str | None = Field(description="Why it aborts.")
    timeout_at: datetime | None = Field(description="When it aborts unless it is decided; null once it is.")
    created_at: datetime
    updated_at: datetime


class TransactionHistory(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    entries: list[HistoryEntry] = Field(description="In the order of the log.")
    next: str | None = Field(description="The next page's path and query; null = there are no more yet.")
    next_cursor: str | None = Field(description="The cursor in it.")


class TransactionSummary(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transaction_id: UUID
    state: TransactionState
    participants: list[str] = Field(description="Their service names.")
    needs_attention: bool
    parked: bool
    created_at: datetime
    updated_at: datetime


class TransactionPage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    transactions: list[TransactionSummary] = Field(description="Newest first.")
    next: str | None = Field(description="The next page's path and query; null = this was the last.")
    next_cursor: str | None = Field(description="The cursor in it.")


_AGE: JsonDict = {"examples": ["5m"], "pattern": PATTERN}


class TransactionListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    state: list[TransactionState] | None = Field(default=None, description="In one of these states; may be repeated.")
    participant: str | None = Field(default=None, pattern=f"^{NAME.pattern}$", description="With this participant.")
    created_after: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    created_before: Time | None = Field(default=None, description="RFC 3339, exclusive.")
    older_than: str | None = Field(
        default=None, description="Begun longer ago: `90s`, `5m`, `2h`, `7d`.", json_schema_extra=_AGE
    )
    younger_than: str | None = Field(default=None, description="Begun since then.", json_schema_extra=_AGE)
    needs_attention: bool | None = None
    limit: int | None = Field(default=None, ge=1, description="Transactions on a page.")
    cursor: str | None = Field(default=None, max_length=200, description="`next_cursor` of the page before.")
