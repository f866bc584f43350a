"""The machine's values to and from what is stored and sent: Avro records, JSON columns, Kafka records.

Everything here is a function of its arguments, so effects that are read back from the journal after a crash are
encoded into the very records that the first publication made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.saga import (
    DeadlinePassed,
    Effect,
    EventType,
    Input,
    Operation,
    Outcome,
    PublishEvent,
    Saga,
    SagaStarted,
    SagaState,
    SendCommand,
    StepProgress,
    StepReplied,
    StepState,
)
from schemas import Codec, UndecodableRecord

EVENTS_TOPIC = "fluxora.transactions.events"
HTTP_COMMANDS_TOPIC = "fluxora.http.commands"
SOURCE = "/fluxora/saga-processors"


# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────────────────


def definition_from_record(record: Mapping[str, Any]) -> SagaDefinition:
    """Build the definition from a ``fluxora.SagaStarted`` record, or from the JSON column made of it."""
    return SagaDefinition(
        name=record["name"],
        steps=tuple(
            StepDefinition(
                name=step["name"],
                service_name=step["service_name"],
                command=step["command"],
                payload=step["payload"],
                depends_on=tuple(step["depends_on"]),
                kind=StepKind(step["kind"]),
                retry=RetryPolicy(**step["retry"]),
                timeout_ms=step["timeout_ms"],
                action_endpoint=step["action_endpoint"],
                compensation_endpoint=step["compensation_endpoint"],
            )
            for step in record["steps"]
        ),
        timeout_ms=record["timeout_ms"],
        traceparent=record["traceparent"],
    )


def input_from_record(name: str, record: Mapping[str, Any]) -> Input:
    """Build the machine's input from a decoded record.

    Raises:
        UndecodableRecord: the record is none of the inputs.
    """
    match name:
        case "fluxora.StepReplied":
            return StepReplied(
                step=record["step"],
                operation=Operation(record["operation"]),
                attempt=record["attempt"],
                outcome=Outcome(record["outcome"]),
                result=record["result"],
                reason=record["reason"],
            )
        case "fluxora.DeadlinePassed":
            return DeadlinePassed(due_at=to_ms(record["due_at"]))
        case "fluxora.SagaStarted":
            return SagaStarted(definition_from_record(record))
    raise UndecodableRecord(f"{name} is no input of a transaction")


def input_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The journal's column ``input``: the record without its id, and without what is stored elsewhere."""
    return {
        key: to_ms(value) if isinstance(value, datetime) else value
        for key, value in record.items()
        if key not in ("transaction_id", "steps") and value is not None
    }


def definition_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The column ``transactions.definition``: the first input without its id."""
    return {key: value for key, value in record.items() if key != "transaction_id"}


# ── State ─────────────────────────────────────────────────────────────────────────────────────────────────────

_STEP_DEFAULTS = {f.name: f.default for f in fields(StepProgress)}
_PENDING = StepProgress()


def progress_to_json(saga: Saga) -> dict[str, Any]:
    """The column ``transactions.progress``; what has its default value is left out."""
    progress: dict[str, Any] = {
        "steps": [_step_to_json(step) for step in saga.steps],
        "created_at": saga.created_at,
        "updated_at": saga.updated_at,
        "events": saga.events,
    }
    if saga.timeout_at is not None:
        progress["timeout_at"] = saga.timeout_at
    if saga.reason is not None:
        progress["reason"] = saga.reason
    if saga.needs_attention:
        progress["needs_attention"] = True
    return progress


def _step_to_json(step: StepProgress) -> dict[str, Any]:
    if step is _PENDING:
        return {}
    return {name: value for name, default in _STEP_DEFAULTS.items() if (value := getattr(step, name)) != default}


def saga_from_json(definition: Mapping[str, Any], state: str, progress: Mapping[str, Any]) -> Saga:
    """The inverse of :func:`progress_to_json`."""
    return Saga(
        definition=definition_from_record(definition),
        state=SagaState(state),
        steps=tuple(
            StepProgress(**(step | {"state": StepState(step["state"])})) if step else _PENDING
            for step in progress["steps"]
        ),
        created_at=progress["created_at"],
        updated_at=progress["updated_at"],
        timeout_at=progress.get("timeout_at"),
        reason=progress.get("reason"),
        needs_attention=progress.get("needs_attention", False),
        events=progress["events"],
    )


# ── Effects ───────────────────────────────────────────────────────────────────────────────────────────────────


def effect_to_json(effect: Effect) -> dict[str, Any]:
    """The journal's column ``effects``: what was decided, not the bytes; they follow from it and the saga."""
    match effect:
        case SendCommand():
            sent = {"send": effect.operation.value, "step": effect.step, "attempt": effect.attempt}
            return sent | {"final": True} if effect.final else sent
        case PublishEvent():
            published = {"publish": effect.type.value, "sequence": effect.sequence, "state": effect.state.value}
            if effect.step is not None:
                published["step"] = effect.step
            if effect.reason is not None:
                published["reason"] = effect.reason
            return published


def effect_from_json(stored: Mapping[str, Any]) -> Effect:
    """The inverse of :func:`effect_to_json`."""
    if "send" in stored:
        return SendCommand(stored["step"], Operation(stored["send"]), stored["attempt"], stored.get("final", False))
    return PublishEvent(
        stored["sequence"],
        EventType(stored["publish"]),
        SagaState(stored["state"]),
        stored.get("step"),
        stored.get("reason"),
    )


@dataclass(frozen=True, slots=True)
class KafkaRecord:
    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, str | bytes | None]]


def command_id(transaction_id: str, step: str, operation: Operation, attempt: int) -> str:
    """The same for every copy of a command, so that receivers drop the second one."""
    return f"{transaction_id}:{step}:{operation.lower()}:{attempt}"


def effect_to_record(codec: Codec, transaction_id: str, saga: Saga, effect: Effect, at: int) -> KafkaRecord:
    """What leaves because of ``effect``.

    Args:
        saga: after the input that caused the effect, or any later state: what is read here no longer changes.
        at: the log's time of that input, ms.
    """
    definition = saga.definition
    match effect:
        case SendCommand():
            step = definition.steps[effect.step]
            id = command_id(transaction_id, step.name, effect.operation, effect.attempt)
            undo = effect.operation is Operation.COMPENSATION
            topic = f"{step.service_name}.commands" if step.action_endpoint is None else HTTP_COMMANDS_TOPIC
            type = "fluxora.StepCommand"
            value = codec.encode(
                type,
                {
                    "command_id": id,
                    "transaction_id": transaction_id,
                    "saga_name": definition.name,
                    "step": step.name,
                    "command": step.command,
                    "operation": effect.operation.value,
                    "attempt": effect.attempt,
                    "final": effect.final,
                    "must_succeed": step.kind is StepKind.RETRIABLE,
                    "payload": step.payload,
                    "result": saga.steps[effect.step].result if undo else None,
                },
            )
        case PublishEvent():
            id = f"{transaction_id}:{effect.sequence}"
            topic = EVENTS_TOPIC
            type = "fluxora.SagaEvent"
            value = codec.encode(
                type,
                {
                    "event_id": id,
                    "transaction_id": transaction_id,
                    "sequence": effect.sequence,
                    "saga_name": definition.name,
                    "type": effect.type.value,
                    "state": effect.state.value,
                    "step": None if effect.step is None else definition.steps[effect.step].name,
                    "reason": effect.reason,
                    "at": at,
                },
            )
            type = f"{type}.{effect.type}"
    # CloudEvents 1.0, Kafka protocol binding, binary content mode.
    headers: list[tuple[str, str | bytes | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", id.encode()),
        ("ce_type", type.encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_time", from_ms(at).isoformat().encode()),
        ("content-type", b"application/avro"),
    ]
    if definition.traceparent is not None:
        headers.append(("traceparent", definition.traceparent.encode()))
    return KafkaRecord(topic, transaction_id.encode(), value, headers)


def to_ms(time: datetime) -> int:
    """A point in time in ms since the epoch."""
    return round(time.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """The inverse of :func:`to_ms`, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
