"""A transaction's life from the log itself: its inputs, and what the machine decided on each (``fluxora tx history``).

Nothing is taken from the stored states, so this works while the database is wrong, or gone. ``what_if`` folds the same
inputs with a change and compares the decisions; nothing is written or sent.
"""

import difflib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from saga_processors import codec as codecs
from saga_processors.log import INPUT_TOPIC
from saga_processors.machines import Machine, advance
from saga_processors.records import from_ms
from schemas import Codec, FluxoraError, UndecodableRecord

#: Records are looked for from a little before the time that a UUIDv7 carries: clocks differ.
_CLOCK_SKEW_MS = 10 * 60 * 1000
_SILENCE_S = 30.0

#: Records read, records to read (as far as known).
Progress = Callable[[int, int], None]


class HistoryUnavailable(FluxoraError):
    """The log does not answer, or does not hold the transaction."""


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
        HistoryUnavailable: the brokers do not answer.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            # Never subscribed and never committed: the name only has to be there.
            "group.id": "fluxora.history",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        return _read(consumer, codec, transaction_id, progress)
    except KafkaException as error:
        raise HistoryUnavailable(f"Kafka at {bootstrap_servers}: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _read(consumer: Consumer, codec: Codec, transaction_id: str, progress: Progress) -> list[LoggedInput]:
    key = transaction_id.encode()
    topic = consumer.list_topics(INPUT_TOPIC, timeout=10).topics[INPUT_TOPIC]
    if topic.error is not None:
        raise HistoryUnavailable(f"the topic {INPUT_TOPIC} is not there: {topic.error}")
    starts = _starts(consumer, sorted(topic.partitions), transaction_id)
    total = 0
    for start in starts:
        low, high = consumer.get_watermark_offsets(TopicPartition(INPUT_TOPIC, start.partition), timeout=10)
        total += max(0, high - max(low, start.offset))
    consumer.assign(starts)
    found: list[LoggedInput] = []
    open_partitions = {start.partition for start in starts}
    seen, heard = 0, time.monotonic()
    while open_partitions:
        messages = consumer.consume(10_000, timeout=0.5)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > _SILENCE_S:
            raise HistoryUnavailable(f"{INPUT_TOPIC} has not answered for {_SILENCE_S:g} s")
        for message in messages:
            if (error := message.error()) is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                open_partitions.discard(message.partition() or 0)
                continue
            seen += 1
            if message.key() == key:
                found.append(
                    _logged(codec, message.partition(), message.offset(), message.timestamp()[1], message.value())
                )
        progress(min(seen, total), total)
    return sorted(found, key=lambda one: (one.partition, one.offset))


def _starts(consumer: Consumer, partitions: Sequence[int], transaction_id: str) -> list[TopicPartition]:
    """Where to begin in each partition."""
    id = uuid.UUID(transaction_id)
    if id.version != 7:
        return [TopicPartition(INPUT_TOPIC, p, -2) for p in partitions]  # the beginning
    made_at = (id.int >> 80) - _CLOCK_SKEW_MS
    asked = [TopicPartition(INPUT_TOPIC, p, made_at) for p in partitions]
    return list(consumer.offsets_for_times(asked, timeout=10))


def _logged(codec: Codec, partition: int | None, offset: int | None, at: int, value: object) -> LoggedInput:
    assert partition is not None and offset is not None
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
    for number, logged in enumerate(inputs, 1):
        state = None if machine is None else str(machine.state)
        if logged.body is None:
            yield Folded(number, logged, "POISON", logged.problem, state, ())
            continue
        if home is not None and logged.partition != home:
            yield Folded(number, logged, "POISON", f"the transaction is folded from partition {home}", state, ())
            continue
        try:
            decision = advance(machine, codecs.input_from_record(logged.type, logged.body), logged.at)
        except Exception as error:
            # A record that is no input, or a machine that fails: told, like everything else.
            verdict = "POISON" if isinstance(error, (UndecodableRecord, ValueError, KeyError)) else "FAILED"
            yield Folded(number, logged, verdict, f"{error.__class__.__name__}: {error}", state, ())
            continue
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
