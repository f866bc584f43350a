"""A two-phase commit as REST shows it, from its row. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from coordinator.views import UNREADABLE, UNREADABLE_DEFINITION, json_text, time, time_of_ms
from saga_processors.transaction import TERMINAL, Participant, TransactionState
from saga_processors.transaction_codec import definition_from_record, transaction_from_json
from saga_processors.transaction_definition import DEFAULT_POLICY, TransactionDefinition

log = structlog.get_logger()

#: Commit or abort is decided.
DECIDED = frozenset(
    {
        TransactionState.COMMITTING,
        TransactionState.COMMITTED,
        TransactionState.ABORTING,
        TransactionState.ABORTED,
    }
)


@dataclass(frozen=True, slots=True)
class TransactionRow:
    """What is read of a row of ``transactions``."""

    id: UUID
    state: TransactionState
    definition: Mapping[str, Any]
    #: ``None`` until the first input is folded.
    progress: Mapping[str, Any] | None
    needs_attention: bool
    parked: bool
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


def view(row: TransactionRow) -> dict[str, Any]:
    """The answer of ``GET /transactions/{id}``; its shape is ``transaction_models.TransactionView``.

    What is stored of one that is parked, or will be with its next input, may not be readable; then it is shown as it
    began; without participants, if its definition is what cannot be read.
    """
    for read in (_folded, _begun):
        try:
            return read(row)
        except Exception as error:
            log.warning("unreadable", transaction=str(row.id), error=repr(error))
    return _view(row, TransactionDefinition(timeout_ms=0), (), None, UNREADABLE_DEFINITION)


def _folded(row: TransactionRow) -> dict[str, Any]:
    if row.progress is None:
        return _begun(row)
    machine = transaction_from_json(row.definition, row.state, row.progress)
    return _view(row, machine.definition, machine.participants, time_of_ms(machine.timeout_at), machine.reason)


def _begun(row: TransactionRow) -> dict[str, Any]:
    """As it began: no input is folded, or nothing else can be read."""
    definition = definition_from_record(row.definition, DEFAULT_POLICY)
    participants = tuple(Participant(participant) for participant in definition.participants)
    # By the log's clock it will be a moment later.
    timeout_at = time(row.created_at + timedelta(milliseconds=definition.timeout_ms))
    return _view(row, definition, participants, timeout_at, None if row.progress is None else UNREADABLE)


def _view(
    row: TransactionRow,
    definition: TransactionDefinition,
    participants: Sequence[Participant],
    timeout_at: str | None,
    reason: str | None,
) -> dict[str, Any]:
    return {
        "transaction_id": row.id,
        "state": row.state,
        "participants": [_participant(participant) for participant in participants],
        "auto_commit": definition.auto_commit,
        "metadata": json_text(definition.metadata),
        "needs_attention": row.needs_attention,
        "parked": row.parked,
        "reason": reason,
        "timeout_at": timeout_at,
        "created_at": time(row.created_at),
        "updated_at": time(row.updated_at),
    }


def names(row: TransactionRow) -> list[str]:
    """Service names of its participants, in the order in which effects number them."""
    return [participant["service_name"] for participant in view(row)["participants"]]


def _participant(participant: Participant) -> dict[str, Any]:
    definition = participant.definition
    return {
        "service_name": definition.service_name,
        "state": participant.state,
        "transport": definition.transport,
        "service_url": definition.service_url,
        "prepare_endpoint": definition.prepare_endpoint,
        "commit_endpoint": definition.commit_endpoint,
        "abort_endpoint": definition.abort_endpoint,
        "payload": json_text(definition.payload),
        "attempt": participant.attempt,
        "reason": participant.reason,
        "needs_attention": participant.needs_attention,
        "timeout_at": time_of_ms(participant.timeout_at),
        "retry_at": time_of_ms(participant.retry_at),
    }


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """One of a page; its shape is ``transaction_models.TransactionSummary``."""
    return {
        "transaction_id": row["id"],
        "state": row["state"],
        "participants": row["services"],
        "needs_attention": row["needs_attention"],
        "parked": row["parked"],
        "created_at": time(row["created_at"]),
        "updated_at": time(row["updated_at"]),
    }
