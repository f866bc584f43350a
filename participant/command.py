"""A command, what may come of it, and how both travel."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType

import orjson

from participant.json_text import NotJson, dumps

COMMAND = "fluxora.StepCommand"
REPLY = "fluxora.StepReplied"
#: Inputs of the saga machine: every reply goes there.
TRANSACTIONS_TOPIC = "fluxora.transactions"
#: Characters of a reason that are kept; the full story is in the dead letter and the log.
REASON_LIMIT = 2_000
#: Characters of an id that is part of a key in PostgreSQL, whose index entries end at 2.7 kB.
ID_LIMIT = 500
#: Bytes of a result. A reply must fit one Kafka record (1 MiB by default) beside its headers; one that does
#: not would stop the connector, and with it every message of the database.
RESULT_LIMIT = 512 * 1024

#: JSON, as it is stored and sent.
Json = NewType("Json", str)


class Operation(StrEnum):
    #: do the step
    ACTION = "ACTION"
    #: undo it
    COMPENSATION = "COMPENSATION"


class Outcome(StrEnum):
    #: it ran, or there was nothing to do
    DONE = "DONE"
    #: the business says no; nothing was done
    REFUSED = "REFUSED"
    #: an error; nothing was done, another attempt may succeed
    FAILED = "FAILED"
    #: only in the barrier: the compensation came first, so the action must never run
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Command:
    """One attempt at one operation of one step. A second copy has the same ``command_id``."""

    command_id: str
    transaction_id: uuid.UUID
    saga_name: str
    step: str
    name: str
    operation: Operation
    #: from 1
    attempt: int = 1
    #: no attempt follows: what fails now is dead-lettered
    final: bool = False
    #: a retriable step: a refusal is not remembered, it will be asked again until it succeeds
    must_succeed: bool = False
    #: the step's payload, parsed
    payload: Any = None
    #: with a compensation: what the action returned
    result: Any | None = None
    #: W3C Trace Context of whoever sent it
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """What a handler returns to say no. It is an answer, not an error; rows written before it are rolled back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What one command came to."""

    outcome: Outcome
    result: Json | None = None
    reason: str | None = None


class InvalidResult(TypeError):
    """A handler returned something that cannot be its answer."""


def reply_from(command: Command, returned: object) -> Reply:
    """Turn what a handler returned into its reply.

    Raises:
        InvalidResult: not JSON, over the limit, or a compensation that refuses.
    """
    if isinstance(returned, Refused):
        if command.operation is Operation.COMPENSATION:
            raise InvalidResult(f"the compensation of {command.name!r} returned Refused; it must undo or raise")
        return Reply(Outcome.REFUSED, reason=storable(returned.reason))
    if returned is None:
        return Reply(Outcome.DONE)
    if not isinstance(returned, Mapping):
        raise InvalidResult(
            f"the handler of {command.name!r} returned {type(returned).__name__}, not a dict, Refused or None"
        )
    try:
        encoded = dumps(returned if isinstance(returned, dict) else dict(returned), "result")
    except NotJson as error:
        raise InvalidResult(f"what the handler of {command.name!r} returned is not JSON: {error}") from error
    if len(encoded) > RESULT_LIMIT:
        raise InvalidResult(
            f"what the handler of {command.name!r} returned is {len(encoded)} bytes of JSON; {RESULT_LIMIT} may be"
        )
    return Reply(Outcome.DONE, result=Json(encoded.decode()))


def storable(reason: str) -> str:
    """Return ``reason`` as PostgreSQL and Avro take it: no NUL, no lone surrogate, not endless."""
    return reason.replace("\x00", "\\0").encode("utf-8", "replace").decode()[:REASON_LIMIT]


def command_from(record: Mapping[str, Any], traceparent: str | None = None) -> Command:
    """Build the command from its Avro record; ValueError or KeyError if it breaks a rule of ours."""
    for field in ("command_id", "step"):
        if not record[field] or "\x00" in record[field] or len(record[field]) > ID_LIMIT:
            raise ValueError(f"{field} is empty, over {ID_LIMIT} characters, or holds a NUL: it cannot be a key")
    result = record.get("result")
    return Command(
        command_id=record["command_id"],
        transaction_id=uuid.UUID(record["transaction_id"]),
        saga_name=record["saga_name"],
        step=record["step"],
        name=record["command"],
        operation=Operation(record["operation"]),
        attempt=record["attempt"],
        final=record["final"],
        must_succeed=record.get("must_succeed", False),
        payload=orjson.loads(record["payload"]),
        result=None if result is None else orjson.loads(result),
        traceparent=traceparent,
    )


def reply_record(command: Command, reply: Reply) -> dict[str, Any]:
    """Return the Avro record of a reply."""
    return {
        "transaction_id": str(command.transaction_id),
        "command_id": command.command_id,
        "step": command.step,
        "operation": command.operation.value,
        "attempt": command.attempt,
        "outcome": reply.outcome.value,
        "result": reply.result,
        "reason": reply.reason,
    }
