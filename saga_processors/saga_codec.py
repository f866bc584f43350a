"""The saga machine's values to and from what is stored and sent: Avro records, JSON columns, Kafka records."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from participant.command import REASON_LIMIT, RESULT_LIMIT
from saga_processors import endpoint
from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.machine import Request
from saga_processors.records import EVENTS_TOPIC, HTTP_COMMANDS_TOPIC, KafkaRecord, command_id, from_ms, kafka_record
from saga_processors.saga import (
    Effect,
    EventType,
    Operation,
    OperatorRequest,
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
from saga_processors.saga_machine import payload_of
from schemas import Codec

#: Characters of an operator's name that are kept.
WHO_LIMIT = 200

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
        version=record.get("version"),
        input=record.get("input"),
    )


def started_from_record(record: Mapping[str, Any]) -> SagaStarted:
    """Build the first input from a ``fluxora.SagaStarted`` record."""
    return SagaStarted(definition_from_record(record))


def reply_from_record(record: Mapping[str, Any]) -> StepReplied:
    """Build the input from a ``fluxora.StepReplied`` record.

    What it holds goes into other records. Our participants and the relay keep the limits; of anybody else's answer
    a reason is cut, and a result that is too large makes it one that says nothing: the step may have run.
    """
    outcome, result, reason = Outcome(record["outcome"]), record["result"], record["reason"]
    if result is not None and len(result) * 4 > RESULT_LIMIT and len(result.encode()) > RESULT_LIMIT:
        reason = f"the result has {len(result.encode())} bytes; {RESULT_LIMIT} may be"
        outcome, result = Outcome.UNKNOWN, None
    return StepReplied(
        step=record["step"],
        operation=Operation(record["operation"]),
        attempt=record["attempt"],
        outcome=outcome,
        result=result,
        reason=None if reason is None else reason[:REASON_LIMIT],
    )


def request_from_record(record: Mapping[str, Any]) -> OperatorRequest:
    """Build the input from a ``fluxora.RequestMade`` record with CANCEL, RETRY or SKIP."""
    who, why = record["who"], record["why"]
    return OperatorRequest(
        request_id=str(UUID(record["request_id"])),
        request=Request(record["request"]),
        step=record["step"],
        who=None if who is None else who[:WHO_LIMIT],
        why=None if why is None else why[:REASON_LIMIT],
    )


# ── State ─────────────────────────────────────────────────────────────────────────────────────────────────────

_PENDING = StepProgress()
_FIELDS = StepProgress._fields


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
    if saga.requests:
        progress["requests"] = saga.requests
    return progress


def _step_to_json(step: StepProgress) -> dict[str, Any]:
    return {name: value for name, value, default in zip(_FIELDS, step, _PENDING, strict=True) if value != default}


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
        requests=tuple(progress.get("requests", ())),
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
            id = command_id(transaction_id, step.name, effect.operation.value, effect.attempt)
            if step.action_endpoint is None:
                topic, type = f"{step.service_name}.commands", "fluxora.StepCommand"
                value = codec.encode(type, _kafka_command(id, transaction_id, saga, effect))
            else:
                topic, type = HTTP_COMMANDS_TOPIC, "fluxora.HttpCommand"
                value = codec.encode(type, _http_command(id, transaction_id, saga, effect, at))
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
    return kafka_record(topic, transaction_id, value, id=id, type=type, at=at, traceparent=definition.traceparent)


def _kafka_command(id: str, transaction_id: str, saga: Saga, command: SendCommand) -> dict[str, Any]:
    step = saga.definition.steps[command.step]
    return {
        "command_id": id,
        "transaction_id": transaction_id,
        "saga_name": saga.definition.name,
        "step": step.name,
        "command": step.command,
        "operation": command.operation.value,
        "attempt": command.attempt,
        "final": command.final,
        "must_succeed": step.kind is StepKind.RETRIABLE,
        "payload": payload_of(saga.definition, saga.steps, command.step),
        "result": saga.steps[command.step].result if command.operation is Operation.COMPENSATION else None,
    }


def _http_command(id: str, transaction_id: str, saga: Saga, command: SendCommand, at: int) -> dict[str, Any]:
    step = saga.definition.steps[command.step]
    body = payload_of(saga.definition, saga.steps, command.step)
    address = step.action_endpoint
    if command.operation is Operation.COMPENSATION:
        address = step.compensation_endpoint
        # Names and ids have no character that JSON escapes; payload and result are JSON.
        body = (
            f'{{"step_id":"{step.name}","original_payload":{body},"saga_id":"{transaction_id}",'
            f'"result":{saga.steps[command.step].result or "null"}}}'
        )
    assert address is not None, "a step without a compensation_endpoint is undone without a call"
    service_url, path = endpoint.split(address)
    return {
        "command_id": id,
        "transaction_id": transaction_id,
        "subject": step.name,
        "operation": command.operation.value,
        "attempt": command.attempt,
        "idempotency_key": f"{transaction_id}:{step.name}:{command.operation.value.lower()}",
        "service_name": step.service_name,
        "service_url": service_url,
        "endpoint": path,
        "body": body,
        "timeout_ms": step.timeout_ms,
        "expires_at": from_ms(at + step.timeout_ms),
    }
