"""``fluxora dlq``: dead letters, why they are dead, and sending them back to where they came from.

A dead letter carries the headers that Kafka Connect gives its own (KIP-298): where the record was, and what was wrong
with it. A letter that is sent back is the record without those headers, with ``redrive-id``; the letter stays.
Whoever has handled the record meanwhile drops it by its id, as any second copy.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from uuid_utils.compat import uuid7

from fluxora.sending import NotSent, Sender
from fluxora.topic_reader import Range, TopicReader, as_bytes, headers_of
from outbox_relay.messages.names import DEAD_LETTERS as MESSAGES
from schemas import FluxoraError

SUFFIX = ".dlq"
REDRIVE_ID = "redrive-id"
_ERRORS = "__connect.errors."


class CannotRedrive(FluxoraError):
    """A letter does not say where it came from, or the brokers refuse."""


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A dead letter topic."""

    topic: str
    #: Letters it holds now.
    letters: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter and what its headers say."""

    partition: int
    offset: int
    #: When it was buried, ms.
    at: int
    key: str | None
    bytes: int
    #: Where the record was; ``None``: the letter does not say.
    from_topic: str | None
    from_partition: int | None
    from_offset: int | None
    error: str
    message: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def topics(bootstrap_servers: str) -> list[DeadLetters]:
    """Return every dead letter topic with what it holds. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    found = []
    for name in sorted(admin.list_topics(timeout=10).topics):
        if name.endswith(SUFFIX):
            with TopicReader(bootstrap_servers, name) as reader:
                found.append(DeadLetters(name, sum(one.end - one.start for one in reader.ranges())))
    return found


def held(bootstrap_servers: str, topic: str, offsets: Sequence[Range] = ()) -> list[Range]:
    """What ``topic`` holds now, or ``offsets`` if it holds all of them.

    Raises:
        TopicUnavailable: there is no such topic, or the brokers do not answer.
        CannotRedrive: the topic does not hold all of ``offsets``.
    """
    with TopicReader(bootstrap_servers, topic) as reader:
        there = {one.partition: one for one in reader.ranges()}
    for asked in offsets:
        one = there.get(asked.partition)
        if one is None or asked.start < one.start or asked.end > one.end:
            raise CannotRedrive(
                f"{topic}[{asked.partition}] does not hold all of {asked.start} to {asked.end - 1}; it holds "
                + ("nothing" if one is None else f"{one.start} to {one.end - 1}")
            )
    return list(offsets) or list(there.values())


def letters(bootstrap_servers: str, topic: str, ranges: Sequence[Range]) -> Iterator[tuple[Letter, Message]]:
    """Yield the letters of ``ranges``, none of which is kept. Raises TopicUnavailable."""
    with TopicReader(bootstrap_servers, topic) as reader:
        for message in reader.read(ranges):
            yield _letter(message), message


def newest(found: Iterable[tuple[Letter, Message]], limit: int) -> list[Letter]:
    """At most ``limit`` letters, the newest last; of the others nothing is kept."""
    last = heapq.nlargest(limit, (letter for letter, _ in found), key=_age)
    return sorted(last, key=_age)


def _age(letter: Letter) -> tuple[int, int, int]:
    return letter.at, letter.partition, letter.offset


def _letter(message: Message) -> Letter:
    told = {
        name.removeprefix(_ERRORS): "" if value is None else value.decode("utf-8", "replace")
        for name, value in headers_of(message)
        if name.startswith(_ERRORS)
    }
    key, value, offset = as_bytes(message.key()), as_bytes(message.value()), message.offset()
    assert offset is not None
    return Letter(
        partition=message.partition() or 0,
        offset=offset,
        at=message.timestamp()[1],
        key=None if key is None else key.decode("utf-8", "replace"),
        bytes=len(value or b""),
        from_topic=told.get("topic") or None,
        from_partition=_number(told.get("partition")),
        from_offset=_number(told.get("offset")),
        error=told.get("exception.class.name", "?"),
        message=told.get("exception.message", ""),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def check(found: Iterable[tuple[Letter, Message]]) -> int:
    """Return how many letters there are.

    Raises:
        CannotRedrive: a letter does not say where it came from, or is a message's.
    """
    count = 0
    for letter, message in found:
        if message.topic() == MESSAGES:
            # They never were in a topic: their services take them over HTTP, and the Outbox Service has their state.
            raise CannotRedrive(
                f"{MESSAGES} holds messages of the Outbox Service; nothing was sent. Send them again with "
                "`fluxora message redeliver`"
            )
        if letter.from_topic is None:
            raise CannotRedrive(
                f"the letter at {letter.partition}:{letter.offset} does not say where it came from "
                f"({_ERRORS}topic); nothing was sent"
            )
        count += 1
    return count


def redrive(bootstrap_servers: str, found: Iterable[tuple[Letter, Message]]) -> tuple[str, int]:
    """Send the records of letters that were checked back to their topics, in order.

    Returns the redrive's id, and how many were sent.

    Raises:
        CannotRedrive: a broker refuses one, or does not answer.
    """
    sender = Sender(bootstrap_servers)
    id = str(uuid7())
    try:
        for letter, message in found:
            headers: list[tuple[str, str | bytes | None]] = [
                (name, value) for name, value in headers_of(message) if not name.startswith(_ERRORS)
            ]
            assert letter.from_topic is not None
            sender.send(
                letter.from_topic,
                as_bytes(message.value()),
                as_bytes(message.key()),
                [*headers, (REDRIVE_ID, id.encode())],
            )
        sender.finish()
    except NotSent as error:
        raise CannotRedrive(
            f"not every letter was sent ({sender.acknowledged} were): {error}. Send them again: ids stay the same"
        ) from error
    return id, sender.acknowledged
