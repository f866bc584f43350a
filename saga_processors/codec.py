"""Every machine's values to and from what is stored and sent: Avro records, JSON columns, Kafka records.

What belongs to one machine is in ``saga_codec``. Everything here is a function of its arguments, so effects that are
read back from the journal after a crash are encoded into the very records that the first publication made.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from saga_processors import saga_codec
from saga_processors.machine import DeadlinePassed
from saga_processors.machines import Effect, Input, Machine
from saga_processors.records import KafkaRecord, to_ms
from schemas import Codec, UndecodableRecord

#: Which machine folds a transaction that begins with this input: the column ``transactions.kind``.
KINDS = {"fluxora.SagaStarted": "saga"}


def input_from_record(name: str, record: Mapping[str, Any]) -> Input:
    """Build a machine's input from a decoded record.

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
        case "fluxora.RequestMade" if record["request"] in ("CANCEL", "RETRY", "SKIP"):
            return saga_codec.request_from_record(record)
    raise UndecodableRecord(f"{name} is no input of a transaction")


def input_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The journal's column ``input``: the record without its id, and without what is stored elsewhere."""
    return {
        key: to_ms(value) if isinstance(value, datetime) else value
        for key, value in record.items()
        if key not in ("transaction_id", "steps", "input") and value is not None
    }


def definition_to_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The column ``transactions.definition``: the first input without its id."""
    return {key: value for key, value in record.items() if key != "transaction_id"}


def progress_to_json(machine: Machine) -> dict[str, Any]:
    """The column ``transactions.progress``: the machine's state besides the definition."""
    return saga_codec.progress_to_json(machine)


def machine_from_json(kind: str, definition: Mapping[str, Any], state: str, progress: Mapping[str, Any]) -> Machine:
    """The inverse of :func:`progress_to_json`."""
    assert kind == "saga"
    return saga_codec.saga_from_json(definition, state, progress)


def effect_to_json(effect: Effect) -> dict[str, Any]:
    """The journal's column ``effects``: what was decided, not the bytes; they follow from it and the machine."""
    return saga_codec.effect_to_json(effect)


def effect_from_json(machine: Machine, stored: Mapping[str, Any]) -> Effect:
    """The inverse of :func:`effect_to_json`, for an effect of ``machine``."""
    return saga_codec.effect_from_json(stored)


def effect_to_record(codec: Codec, transaction_id: str, machine: Machine, effect: Effect, at: int) -> KafkaRecord:
    """What leaves because of ``effect``.

    Args:
        machine: after the input that caused the effect, or any later state: what is read of it no longer changes.
        at: the log's time of that input, ms.
    """
    return saga_codec.effect_to_record(codec, transaction_id, machine, effect, at)
