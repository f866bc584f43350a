"""The two-phase commit machine's values to and from what is stored and sent: Avro records, JSON, Kafka records."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from participant.command import REASON_LIMIT
from saga_processors import endpoint
from saga_processors.machine import Request
from saga_processors.records import EVENTS_TOPIC, HTTP_COMMANDS_TOPIC, KafkaRecord, command_id, kafka_record
from saga_processors.transaction import (
    AskParticipant,
    Effect,
    EventType,
    Operation,
    Outcome,
    Participant,
    ParticipantAddRequested,
    ParticipantReplied,
    ParticipantState,
    PublishEvent,
    Transaction,
    TransactionStarted,
    TransactionState,
    VerbRequested,
    timeout_ms,
)
from saga_processors.transaction_definition import (
    DEFAULT_POLICY,
    ParticipantDefinition,
    Policy,
    TransactionDefinition,
    Transport,
)
from schemas import Codec, UndecodableRecord

#: The column ``transactions.name``: a two-phase commit has no name of its own.
NAME = "transaction"

# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────────────────


def definition_from_record(record: Mapping[str, Any], policy: Policy) -> TransactionDefinition:
    """Build the definition from a ``fluxora.TransactionStarted`` record, or from the JSON column made of it.

    ``policy`` is for a record without one, from before inputs carried it.
    """
    carried = record.get("policy")
    return TransactionDefinition(
        timeout_ms=record["timeout_ms"],
        auto_commit=record["auto_commit"],
        metadata=record["metadata"],
        participants=tuple(participant_from_record(participant) for participant in record["participants"]),
        traceparent=record["traceparent"],
        policy=policy if carried is None else Policy(**carried),
    )


def participant_from_record(record: Mapping[str, Any]) -> ParticipantDefinition:
    """Build a participant from a ``fluxora.Participant`` record, or from JSON made of it."""
    return ParticipantDefinition(
        service_name=record["service_name"],
        transport=Transport(record["transport"]),
        prepare_endpoint=record["prepare_endpoint"],
        commit_endpoint=record["commit_endpoint"],
        abort_endpoint=record["abort_endpoint"],
        payload=record["payload"],
        service_url=record["service_url"],
    )


def started_from_record(record: Mapping[str, Any], policy: Policy) -> TransactionStarted:
    """Build the first input from a ``fluxora.TransactionStarted`` record."""
    return TransactionStarted(definition_from_record(record, policy))


def request_from_record(request: Request, record: Mapping[str, Any]) -> ParticipantAddRequested | VerbRequested:
    """Build the input from a ``fluxora.RequestMade`` record whose request is one of a two-phase commit.

    Raises:
        UndecodableRecord: ADD_PARTICIPANT without one.
    """
    if request is not Request.ADD_PARTICIPANT:
        return VerbRequested(request)
    if record["participant"] is None:
        raise UndecodableRecord("ADD_PARTICIPANT comes with a participant")
    return ParticipantAddRequested(participant_from_record(record["participant"]))


def reply_from_record(record: Mapping[str, Any]) -> ParticipantReplied:
    """Build the input from a ``fluxora.ParticipantReplied`` record.

    Our participants and the relay keep the limit of a reason; anybody else's is cut, because it goes into events.
    """
    reason = record["reason"]
    return ParticipantReplied(
        participant=record["participant"],
        operation=Operation(record["operation"]),
        attempt=record["attempt"],
        outcome=Outcome(record["outcome"]),
        reason=None if reason is None else reason[:REASON_LIMIT],
    )


# ── State ─────────────────────────────────────────────────────────────────────────────────────────────────────

_DEFAULTS = {f.name: f.default for f in fields(Participant) if f.name != "definition"}


def progress_to_json(transaction: Transaction) -> dict[str, Any]:
    """The column ``transactions.progress``; what has its default value is left out.

    The participants that the transaction began with are in its definition; those that were added are here.
    """
    begun_with = len(transaction.definition.participants)
    progress: dict[str, Any] = {
        "participants": [
            _participant_to_json(participant, added=i >= begun_with)
            for i, participant in enumerate(transaction.participants)
        ],
        "created_at": transaction.created_at,
        "updated_at": transaction.updated_at,
        "events": transaction.events,
    }
    if transaction.timeout_at is not None:
        progress["timeout_at"] = transaction.timeout_at
    if transaction.reason is not None:
        progress["reason"] = transaction.reason
    if transaction.definition.policy != DEFAULT_POLICY:
        # The definition that is stored has none if the first input had none.
        progress["policy"] = asdict(transaction.definition.policy)
    return progress


def _participant_to_json(participant: Participant, *, added: bool) -> dict[str, Any]:
    stored = {name: value for name, default in _DEFAULTS.items() if (value := getattr(participant, name)) != default}
    return stored | {"definition": asdict(participant.definition)} if added else stored


def transaction_from_json(definition: Mapping[str, Any], state: str, progress: Mapping[str, Any]) -> Transaction:
    """The inverse of :func:`progress_to_json`."""
    begun = definition_from_record(definition, Policy(**progress["policy"]) if "policy" in progress else DEFAULT_POLICY)
    participants = []
    for i, stored in enumerate(progress["participants"]):
        values = dict(stored)
        added = values.pop("definition", None)
        if "state" in values:
            values["state"] = ParticipantState(values["state"])
        participants.append(
            Participant(begun.participants[i] if added is None else participant_from_record(added), **values)
        )
    return Transaction(
        definition=begun,
        state=TransactionState(state),
        participants=tuple(participants),
        created_at=progress["created_at"],
        updated_at=progress["updated_at"],
        timeout_at=progress.get("timeout_at"),
        reason=progress.get("reason"),
        events=progress["events"],
    )


# ── Effects ───────────────────────────────────────────────────────────────────────────────────────────────────


def effect_to_json(effect: Effect) -> dict[str, Any]:
    """The journal's column ``effects``: what was decided, not the bytes; they follow from it and the transaction."""
    match effect:
        case AskParticipant():
            return {
                "ask": effect.operation.value,
                "participant": effect.participant,
                "attempt": effect.attempt,
            }
        case PublishEvent():
            published = {"publish": effect.type.value, "sequence": effect.sequence, "state": effect.state.value}
            if effect.participant is not None:
                published["participant"] = effect.participant
            if effect.reason is not None:
                published["reason"] = effect.reason
            return published


def effect_from_json(stored: Mapping[str, Any]) -> Effect:
    """The inverse of :func:`effect_to_json`."""
    if "ask" in stored:
        return AskParticipant(stored["participant"], Operation(stored["ask"]), stored["attempt"])
    return PublishEvent(
        stored["sequence"],
        EventType(stored["publish"]),
        TransactionState(stored["state"]),
        stored.get("participant"),
        stored.get("reason"),
    )


def effect_to_record(
    codec: Codec, transaction_id: str, transaction: Transaction, effect: Effect, at: int
) -> KafkaRecord:
    """What leaves because of ``effect``.

    Args:
        transaction: after the input that caused the effect, or any later state: what is read here no longer changes.
        at: the log's time of that input, ms.
    """
    match effect:
        case AskParticipant():
            participant = transaction.participants[effect.participant].definition
            id = command_id(transaction_id, participant.service_name, effect.operation.value, effect.attempt)
            if participant.transport is Transport.HTTP:
                topic, type = HTTP_COMMANDS_TOPIC, "fluxora.HttpCommand"
                body = _http_command(id, transaction_id, transaction, effect, at)
            else:
                topic, type = f"{participant.service_name}.commands", "fluxora.ParticipantCommand"
                body = {
                    "command_id": id,
                    "transaction_id": transaction_id,
                    "participant": participant.service_name,
                    "operation": effect.operation.value,
                    "attempt": effect.attempt,
                    "payload": participant.payload,
                    "expires_at": transaction.vote_by if effect.operation is Operation.PREPARE else None,
                }
        case PublishEvent():
            id = f"{transaction_id}:{effect.sequence}"
            topic, type = EVENTS_TOPIC, "fluxora.TransactionEvent"
            name = None
            if effect.participant is not None:
                name = transaction.participants[effect.participant].definition.service_name
            body = {
                "event_id": id,
                "transaction_id": transaction_id,
                "sequence": effect.sequence,
                "type": effect.type.value,
                "state": effect.state.value,
                "participant": name,
                "reason": effect.reason,
                "at": at,
            }
    value = codec.encode(type, body)
    ce_type = f"{type}.{effect.type}" if isinstance(effect, PublishEvent) else type
    traceparent = transaction.definition.traceparent
    return kafka_record(topic, transaction_id, value, id=id, type=ce_type, at=at, traceparent=traceparent)


def _http_command(
    id: str, transaction_id: str, transaction: Transaction, effect: AskParticipant, at: int
) -> dict[str, Any]:
    participant = transaction.participants[effect.participant].definition
    path = {
        Operation.PREPARE: participant.prepare_endpoint,
        Operation.COMMIT: participant.commit_endpoint,
        Operation.ABORT: participant.abort_endpoint,
    }[effect.operation]
    limit = timeout_ms(transaction, effect.operation, at)
    return {
        "command_id": id,
        "transaction_id": transaction_id,
        "subject": participant.service_name,
        "operation": effect.operation.value,
        "attempt": effect.attempt,
        "idempotency_key": f"{transaction_id}:{participant.service_name}:{effect.operation.value.lower()}",
        "service_name": participant.service_name,
        "service_url": participant.service_url,
        "endpoint": endpoint.split(path)[1],
        "body": json.dumps(json.loads(participant.payload) | {"transaction_id": transaction_id}),
        "timeout_ms": limit,
        "expires_at": at + limit,
    }
