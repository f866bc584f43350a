"""A transaction's life from the log itself: its inputs, and what the machine decided on each (``fluxora tx history``).

Nothing is taken from the stored states, so this works while the database is wrong, or gone. ``what_if`` folds the same
inputs with a change and compares the decisions; nothing is written or sent.
"""

import difflib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from confluent_kafka import Message

from fluxora.topic_reader import Progress, TopicReader
from saga_processors import codec as codecs
from saga_processors.log import INPUT_TOPIC
from saga_processors.machines import Machine, advance
from saga_processors.records import from_ms
from schemas import Codec, FluxoraError, UndecodableRecord

#: Records are looked for from a little before the time that a UUIDv7 carries: clocks differ.
_CLOCK_SKEW_MS = 10 * 60 * 1000


class InvalidChange(FluxoraError):
    """The change of a what-if does not fit the history."""


@dataclass(frozen=True, slots=True)
class LoggedInput:
    """One record of the log with the transaction's id as its key."""

    partition: int
    offset: int
    #: The log's time, ms.
    at: int
    type: str
    #: The Avro record; ``None``: it cannot be decoded.
    body: dict[str, Any] | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Folded:
    """An input and what the machine decided on it."""

    #: From 1 within the transaction.
    number: int
    input: LoggedInput
    #: APPLIED, IGNORED, REJECTED; POISON: never reached the machine; FAILED: the machine raised.
    verdict: str
    reason: str | None
    state: str | None
    #: As the journal shows them.
    effects: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "number": self.number,
            "partition": self.input.partition,
            "offset": self.input.offset,
            "at": from_ms(self.input.at).isoformat(),
            "type": self.input.type,
            "input": None if self.input.body is None else codecs.input_to_json(self.input.body),
            "verdict": self.verdict,
            "reason": self.reason,
            "state": self.state,
            "effects": list(self.effects),
        }


def read(bootstrap_servers: str, codec: Codec, transaction_id: str, progress: Progress) -> list[LoggedInput]:
    """Return the inputs of a transaction in the log's order.

    A UUIDv7 tells when the transaction was made, so only what came after it is looked through. All partitions are,
    because an input may have been misrouted.

    Raises:
        TopicUnavailable: the brokers do not answer.
    """
    key = transaction_id.encode()
    made_at = _made_at(transaction_id)
    with TopicReader(bootstrap_servers, INPUT_TOPIC) as reader:
        ranges = reader.ranges(since=None if made_at is None else made_at - _CLOCK_SKEW_MS)
        found = [_logged(codec, message) for message in reader.read(ranges, progress) if message.key() == key]
    return sorted(found, key=lambda one: (one.partition, one.offset))


def _made_at(transaction_id: str) -> int | None:
    """The time that a UUIDv7 carries, ms."""
    id = uuid.UUID(transaction_id)
    return id.int >> 80 if id.version == 7 else None


def _logged(codec: Codec, message: Message) -> LoggedInput:
    partition, offset, value = message.partition(), message.offset(), message.value()
    assert partition is not None and offset is not None
    at = message.timestamp()[1]
    try:
        type, body = codec.decode(value if isinstance(value, bytes) else None)
    except UndecodableRecord as error:
        return LoggedInput(partition, offset, at, "?", None, str(error))
    return LoggedInput(partition, offset, at, type, body)


def fold(inputs: Iterable[LoggedInput]) -> list[Folded]:
    """Fold the inputs as the processor does. Pure."""
    return list(_fold(inputs))


def _fold(inputs: Iterable[LoggedInput]) -> Iterator[Folded]:
    machine: Machine | None = None
    home: int | None = None
    answered: set[str] = set()
    for number, logged in enumerate(inputs, 1):
        state = None if machine is None else str(machine.state)
        if logged.body is None:
            yield Folded(number, logged, "POISON", logged.problem, state, ())
            continue
        if home is not None and logged.partition != home:
            yield Folded(number, logged, "POISON", f"the transaction is folded from partition {home}", state, ())
            continue
        request_id = logged.body.get("request_id")
        if request_id in answered:
            yield Folded(number, logged, "IGNORED", f"a second copy of request {request_id}", state, ())
            continue
        try:
            decision = advance(machine, codecs.input_from_record(logged.type, logged.body), logged.at)
        except Exception as error:
            # A record that is no input, or a machine that fails: told, like everything else.
            verdict = "POISON" if isinstance(error, (UndecodableRecord, ValueError, KeyError)) else "FAILED"
            yield Folded(number, logged, verdict, f"{error.__class__.__name__}: {error}", state, ())
            continue
        if isinstance(request_id, str):
            answered.add(request_id)
        machine = decision.machine
        if machine is not None and home is None:
            home = logged.partition
        yield Folded(
            number,
            logged,
            str(decision.verdict),
            decision.reason,
            None if machine is None else str(machine.state),
            tuple(codecs.effect_to_json(effect) for effect in decision.effects),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What a what-if changes in a history."""

    #: Fields to put into an input, by its number; ``None``: the input is left out.
    inputs: Mapping[int, Mapping[str, Any] | None]
    #: Fields to put into the first input, as the Avro record has them: another definition.
    definition: Mapping[str, Any] | None = None


def changed(inputs: Sequence[LoggedInput], change: Change) -> list[LoggedInput]:
    """Apply a change; numbers of inputs stay those of the original history for whoever reads the difference.

    Raises:
        InvalidChange: an input or a field that is not there.
    """
    wrong = sorted(set(change.inputs) - set(range(1, len(inputs) + 1)))
    if wrong:
        raise InvalidChange(f"there is no input {wrong[0]}; the history has inputs 1 to {len(inputs)}")
    result = []
    for number, logged in enumerate(inputs, 1):
        fields: Mapping[str, Any] | None = change.inputs.get(number, {})
        if fields is None:
            continue
        if number == 1 and change.definition is not None:
            fields = {**change.definition, **fields}
        if fields:
            if logged.body is None:
                raise InvalidChange(f"input {number} cannot be decoded, so it has no fields to change")
            unknown = sorted(set(fields) - set(logged.body))
            if unknown:
                there = ", ".join(sorted(logged.body))
                raise InvalidChange(f"{logged.type} (input {number}) has no field {unknown[0]!r}; it has {there}")
            result.append(replace(logged, body={**logged.body, **fields}))
        else:
            result.append(logged)
    return result


def difference(before: Sequence[Folded], after: Sequence[Folded]) -> list[str]:
    """The decisions that differ, as lines of a unified diff; empty when none does."""
    return [
        line.rstrip("\n")
        for line in difflib.unified_diff(_lines(before), _lines(after), "as it was", "as it would be", n=2, lineterm="")
    ]


def _lines(folded: Iterable[Folded]) -> list[str]:
    lines = []
    for one in folded:
        lines.append(f"{one.input.partition}/{one.input.offset} {one.input.type}: {one.verdict} -> {one.state or '-'}")
        if one.reason:
            lines.append(f"    because {one.reason}")
        lines += [f"    {orjson.dumps(effect).decode()}" for effect in one.effects]
    return lines
