"""A saga as REST shows it, from its row. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import structlog

from saga_processors.saga import TERMINAL, SagaState, StepState

log = structlog.get_logger()

#: In the place of the reason.
UNREADABLE = "what is stored of its progress cannot be read"
UNREADABLE_DEFINITION = "what is stored of its definition cannot be read"


@dataclass(frozen=True, slots=True)
class SagaRow:
    """What is read of a row of ``transactions``."""

    id: UUID
    name: str
    state: SagaState
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


def view(row: SagaRow) -> dict[str, Any]:
    """The answer of ``GET /sagas/{id}``; its shape is ``models.SagaView``.

    What is stored of one that is parked, or will be with its next input, may not be readable; then it is shown as it
    began; without steps, if its definition is what cannot be read.
    """
    for definition, progress in (
        (row.definition, row.progress or {}),
        (row.definition, {"reason": UNREADABLE}),
    ):
        try:
            return _view(row, definition, progress)
        except Exception as error:
            log.warning("unreadable", saga=str(row.id), error=repr(error))
    return _view(row, {"steps": ()}, {"reason": UNREADABLE_DEFINITION})


def names(row: SagaRow) -> list[str]:
    """Names of its steps, in the order in which effects number them."""
    return [step["name"] for step in view(row)["steps"]]


def _view(row: SagaRow, definition: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, Any]:
    told: Sequence[Mapping[str, Any]] = progress.get("steps", ())
    steps = [_step(step, told[i] if i < len(told) else {}) for i, step in enumerate(definition["steps"])]
    return {
        "saga_id": row.id,
        "name": row.name,
        # Rows that an earlier version wrote have neither.
        "version": definition.get("version"),
        "input": json_text(definition.get("input")),
        "state": row.state,
        "steps": steps,
        "current_step_index": current_step_index(row.state, [StepState(step["state"]) for step in steps]),
        "needs_attention": row.needs_attention,
        "parked": row.parked,
        "reason": progress.get("reason"),
        "timeout_at": time_of_ms(progress.get("timeout_at")),
        "created_at": time(row.created_at),
        "updated_at": time(row.updated_at),
    }


def _step(definition: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": definition["name"],
        "name": definition["name"],
        "service_name": definition["service_name"],
        "command": definition["command"],
        "kind": definition["kind"].lower(),
        "depends_on": definition["depends_on"],
        "action_endpoint": definition["action_endpoint"],
        "compensation_endpoint": definition["compensation_endpoint"],
        "timeout_seconds": definition["timeout_ms"] / 1000,
        "payload": json_text(definition["payload"]),
        "state": progress.get("state", StepState.PENDING),
        "skipped": progress.get("skipped", False),
        "attempt": progress.get("attempt", 0),
        "result": json_text(progress.get("result")),
        "reason": progress.get("reason"),
        "in_doubt": progress.get("in_doubt", False),
        "started_at": time_of_ms(progress.get("started_at")),
        "ended_at": time_of_ms(progress.get("ended_at")),
        "timeout_at": time_of_ms(progress.get("timeout_at")),
        "retry_at": time_of_ms(progress.get("retry_at")),
    }


def current_step_index(state: SagaState, steps: Sequence[StepState]) -> int:
    """The step a saga is at; always an index of its steps (``models.SagaView`` has the rule), 0 if none is known."""

    def first(*wanted: StepState) -> int | None:
        return next((i for i, step in enumerate(steps) if step in wanted), None)

    def last(*wanted: StepState) -> int | None:
        return next((i for i in reversed(range(len(steps))) if steps[i] in wanted), None)

    found: int | None
    match state:
        case SagaState.STARTED | SagaState.EXECUTING:
            found = first(StepState.EXECUTING)
            if found is None:
                found = first(StepState.PENDING)
            return max(0, len(steps) - 1) if found is None else found
        case SagaState.COMPLETED:
            return max(0, len(steps) - 1)
        case SagaState.COMPENSATING:
            found = last(StepState.COMPENSATING)
            if found is None:
                found = last(StepState.EXECUTED, StepState.EXECUTING)
            return found or 0
        case SagaState.FAILED:
            found = first(StepState.FAILED)
            if found is None:
                # Its own outcome was in doubt, so it was undone like those before it: it began last.
                found = last(*(set(StepState) - {StepState.PENDING}))
            return found or 0


def time(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def time_of_ms(ms: int | None) -> str | None:
    return None if ms is None else time(datetime.fromtimestamp(ms / 1000, UTC))


def json_text(text: str | None) -> orjson.Fragment | str | None:
    """JSON text to stand in the answer as it is: parsing and writing it anew would cost digits and time.

    A participant of another make may have answered with what is no JSON; that is shown as a string.
    """
    if text is None:
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return orjson.Fragment(text)
