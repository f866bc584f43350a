"""Every machine's values to and from what is stored and sent: Avro records, JSON columns, Kafka records.

What belongs to one machine is in ``saga_codec`` and ``transaction_codec``. Everything here is a function of its
arguments, so effects that are read back from the journal after a crash are encoded into the very records that the
first publication made.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from saga_processors import saga_codec, transaction_codec
from saga_processors.machine import DeadlinePassed, Request, UnparkRequested
from saga_processors.machines import Effect, Input, Machine
from saga_processors.records import KafkaRecord, to_ms
from saga_processors.saga import Effect as SagaEffect
from saga_processors.saga import Saga
from saga_processors.transaction import Effect as TransactionEffect
from saga_processors.transaction import Transaction
from saga_processors.transaction_definition import DEFAULT_POLICY, Policy
from schemas import Codec, UndecodableRecord

#: Which machine folds a transaction that begins with this input: the column ``transactions.kind``.
KINDS = {"fluxora.SagaStarted": "saga", "fluxora.TransactionStarted": "transaction"}


def input_from_record(name: str, record: Mapping[str, Any], policy: Policy = DEFAULT_POLICY) -> Input:
    """Build a machine's input from a decoded record.

    Args:
        policy: of a two-phase commit whose first input carries none; it stays with it.

    Raises:
        UndecodableRecord: the record is none of the inputs.
    """
    match name:
        case "fluxora.StepReplied":
            return saga_codec.reply_from_record(record)
        case "fluxora.DeadlinePassed":
            return DeadlinePassed(due_at=to_ms(record["due_at"]))
        case "fluxora.SagaStarted":
            return saga_codec.started_from_record(record)
        case "fluxora.TransactionStarted":
            return transaction_codec.started_from_record(record, policy)
        case "fluxora.ParticipantReplied":
            return transaction_codec.reply_from_record(record)
        case "fluxora.RequestMade":
            _check_request(record)
            match record["request"]:
                case Request.ADD_PARTICIPANT | Request.PREPARE | Request.COMMIT | Request.ABORT:
                    return transaction_codec.request_from_record(Request(record["request"]), record)
                case Request.CANCEL | Request.RETRY | Request.SKIP:
                    return saga_codec.request_from_record(record)
                case Request.UNPARK:
                    return UnparkRequested()
            raise UndecodableRecord(f"there is no request {record['request'][:100]!r}")
    raise UndecodableRecord(f"{name} is no input of a transaction")


def _check_request(record: Mapping[str, Any]) -> None:
    """The journal finds a request by its id with ``->>``, which fails on a NUL anywhere in the JSON."""
    try:
        well_formed = str(UUID(record["request_id"])) == record["request_id"]
    except ValueError:
        well_formed = False
    if not well_formed:
        raise UndecodableRecord(f"request_id is not a UUID in lower case: {record['request_id'][:100]!r}")
    for field, value in [*record.items(), *(record["participant"] or {}).items()]:
        if isinstance(value, str) and "\0" in value:
            raise UndecodableRecord(f"{field} holds a NUL")


def input_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The journal's column ``input``: the record without its id, and without what is stored elsewhere."""
    return {
        key: to_ms(value) if isinstance(value, datetime) else value
        for key, value in record.items()
        if key not in ("transaction_id", "steps", "input", "participants", "policy") and value is not None
    }


def definition_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The column ``transactions.definition``: the first input without its id."""
    return {key: value for key, value in record.items() if key != "transaction_id"}


def name_of(kind: str, definition: Mapping[str, Any]) -> str:
    """The column ``transactions.name``. A transaction that was parked on its first input may have none."""
    return transaction_codec.NAME if kind == "transaction" else str(definition.get("name", ""))


def services_of(kind: str, machine: Machine | None, definition: Mapping[str, Any]) -> list[str]:
    """The column ``transactions.services``: whom it addresses; of a two-phase commit, those that were added too."""
    if isinstance(machine, Transaction):
        return sorted(participant.definition.service_name for participant in machine.participants)
    parts = definition.get("participants" if kind == "transaction" else "steps", ())
    return sorted({part["service_name"] for part in parts})


def progress_to_json(machine: Machine) -> dict[str, Any]:
    """The column ``transactions.progress``: the machine's state besides the definition."""
    match machine:
        case Saga():
            return saga_codec.progress_to_json(machine)
        case Transaction():
            return transaction_codec.progress_to_json(machine)


def machine_from_json(kind: str, definition: Mapping[str, Any], state: str, progress: Mapping[str, Any]) -> Machine:
    """The inverse of :func:`progress_to_json`."""
    if kind == "transaction":
        return transaction_codec.transaction_from_json(definition, state, progress)
    return saga_codec.saga_from_json(definition, state, progress)


def effect_to_json(effect: Effect) -> dict[str, Any]:
    """The journal's column ``effects``: what was decided, not the bytes; they follow from it and the machine."""
    if isinstance(effect, TransactionEffect):
        return transaction_codec.effect_to_json(effect)
    return saga_codec.effect_to_json(effect)


def effect_from_json(machine: Machine, stored: Mapping[str, Any]) -> Effect:
    """The inverse of :func:`effect_to_json`, for an effect of ``machine``."""
    match machine:
        case Saga():
            return saga_codec.effect_from_json(stored)
        case Transaction():
            return transaction_codec.effect_from_json(stored)


def effect_to_record(codec: Codec, transaction_id: str, machine: Machine, effect: Effect, at: int) -> KafkaRecord:
    """What leaves because of ``effect``, which is one of ``machine``.

    Args:
        machine: after the input that caused the effect, or any later state: what is read of it no longer changes.
        at: the log's time of that input, ms.
    """
    if isinstance(machine, Saga) and isinstance(effect, SagaEffect):
        return saga_codec.effect_to_record(codec, transaction_id, machine, effect, at)
    assert isinstance(machine, Transaction) and isinstance(effect, TransactionEffect)
    return transaction_codec.effect_to_record(codec, transaction_id, machine, effect, at)
