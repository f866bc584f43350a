"""``fluxora replay``: records of a topic once more, for consumers that need them again.

A copy keeps key, value, partition, timestamp and every header, its ids among them, so that a consumer with an inbox
drops what it has done already; it gets the header ``replay-id``. Records that are copies themselves are not copied
again. Nothing is sent unless asked; the original topic only when asked twice.
"""

import fnmatch
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self
from uuid import UUID

import orjson
import psycopg
from confluent_kafka import KafkaException, Message
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from uuid_utils.compat import uuid7

from fluxora.sending import NotSent, Sender
from fluxora.topic_reader import Progress, Range, TopicReader, as_bytes, headers_of
from participant.settings import CONNECT
from schemas import Codec, FluxoraError, RegistryUnavailable, UndecodableRecord

REPLAY_ID = "replay-id"
#: Ends the name of the topic that copies go to unless another one is named.
SIDE = ".replay"
#: Bytes of a copy, at most: whatever topic it is of.
RECORD_BYTES = 8 * 1024 * 1024
#: Keys that are told apart; more are not counted, and take no memory.
KEYS_COUNTED = 1_000_000
_OFFSETS = re.compile(r"(\d+):(\d+)-(\d+)")


class CannotReplay(FluxoraError):
    """What was asked for does not fit the topic, or the brokers refuse."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records. What is ``None`` does not matter."""

    #: The record's key: a transaction's id, an aggregate's id.
    key: str | None = None
    #: The event's type with ``*`` and ``?``: the header ``ce_type``, else the schema's name.
    type: str | None = None
    #: From this time on, ms, by the topic's timestamps.
    since: int | None = None
    #: Before this time, ms.
    until: int | None = None
    #: Offsets by partition, both ends included, instead of everything.
    offsets: tuple[Range, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in (None, ())}


def parse_offsets(texts: Sequence[str]) -> tuple[Range, ...]:
    """``PARTITION:FIRST-LAST``, both included; raises CannotReplay."""
    found = []
    for text in texts:
        match = _OFFSETS.fullmatch(text)
        if match is None or int(match[2]) > int(match[3]):
            raise CannotReplay(f"--offsets is PARTITION:FIRST-LAST, as 0:100-250; got {text!r}")
        found.append(Range(int(match[1]), int(match[2]), int(match[3]) + 1))
    if len({one.partition for one in found}) != len(found):
        raise CannotReplay("--offsets names each partition once")
    return tuple(found)


@dataclass(slots=True)
class Found:
    """What a selection comes to."""

    looked_at: int = 0
    matched: int = 0
    #: Matched, but copies of an earlier replay: left out.
    copies: int = 0
    types: Counter[str] = field(default_factory=Counter)
    #: Different ones, up to KEYS_COUNTED.
    keys: int = 0
    first_at: int | None = None
    last_at: int | None = None


class Replay:
    """One replay of one topic."""

    def __init__(self, bootstrap_servers: str, topic: str, selection: Selection, codec: Codec | None) -> None:
        """``codec`` names the schemas of records that have no ``ce_type``."""
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._selection = selection
        self._codec = codec
        self._reader = TopicReader(bootstrap_servers, topic)
        self.id = str(uuid7())
        self.found = Found()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.__exit__(*exc)

    def records(self, progress: Progress) -> Iterator[Message]:
        """Yield what matches, and count it in ``found``."""
        self.found = found = Found()
        keys: set[bytes] = set()
        for message in self._reader.read(self._ranges(), progress):
            found.looked_at += 1
            headers = headers_of(message)
            if self._selection.key is not None and as_bytes(message.key()) != self._selection.key.encode():
                continue
            type = self._type(message, headers)
            if self._selection.type is not None and not fnmatch.fnmatchcase(type, self._selection.type):
                continue
            if any(name == REPLAY_ID for name, _ in headers):
                found.copies += 1
                continue
            at = message.timestamp()[1]
            found.matched += 1
            found.types[type] += 1
            if len(keys) < KEYS_COUNTED:
                keys.add(as_bytes(message.key()) or b"")
            found.keys = len(keys)
            found.first_at = at if found.first_at is None else min(found.first_at, at)
            found.last_at = at if found.last_at is None else max(found.last_at, at)
            yield message

    def _ranges(self) -> list[Range]:
        there = self._reader.ranges(since=self._selection.since, until=self._selection.until)
        if not self._selection.offsets:
            return there
        held = {one.partition: one for one in there}
        wanted = []
        for asked in self._selection.offsets:
            one = held.get(asked.partition)
            if one is None or asked.start < one.start or asked.end > one.end:
                holds = "nothing" if one is None else f"{one.start} to {one.end - 1}"
                raise CannotReplay(
                    f"{self._topic}[{asked.partition}] holds {holds} (within the time range, if one is given), "
                    f"not all of {asked.start} to {asked.end - 1}"
                )
            wanted.append(asked)
        return wanted

    def _type(self, message: Message, headers: Sequence[tuple[str, bytes | None]]) -> str:
        for name, value in headers:
            if name == "ce_type" and value is not None:
                return value.decode("utf-8", "replace")
        if self._codec is not None:
            try:
                return self._codec.decode(as_bytes(message.value()))[0]
            except (UndecodableRecord, RegistryUnavailable):
                pass
        return "?"

    def send(self, target: str, progress: Progress, rate: float | None) -> int:
        """Copy what matches to ``target``, in order within each partition; returns how many were acknowledged.

        Args:
            rate: records a second, at most.

        Raises:
            CannotReplay: the target has fewer partitions than the source, or a broker refuses a record.
        """
        self._ensure(target)
        sender = Sender(self._bootstrap_servers, RECORD_BYTES)
        pace = _Pace(rate)
        try:
            for message in self.records(progress):
                pace.wait(sender.wait)
                kind, at = message.timestamp()
                sender.send(
                    target,
                    as_bytes(message.value()),
                    as_bytes(message.key()),
                    [*headers_of(message), (REPLAY_ID, self.id.encode())],
                    partition=message.partition() or 0,
                    timestamp=at if kind else 0,
                )
            sender.finish()
        except NotSent as error:
            raise CannotReplay(
                f"{sender.acknowledged} records were sent, then the brokers refused: {error}. "
                "Run it again: the ids are the same."
            ) from error
        return sender.acknowledged

    def _ensure(self, target: str) -> None:
        admin = AdminClient({"bootstrap.servers": self._bootstrap_servers})
        topics = admin.list_topics(timeout=10).topics
        source = len(topics[self._topic].partitions)
        if target in topics:
            if len(topics[target].partitions) < source:
                raise CannotReplay(
                    f"{target} has {len(topics[target].partitions)} partitions, {self._topic} has {source}: "
                    "a copy keeps its partition. Name another topic with --to-topic."
                )
            return
        config = {"max.message.bytes": str(RECORD_BYTES), "retention.ms": str(7 * 24 * 3600 * 1000)}
        try:
            admin.create_topics([NewTopic(target, num_partitions=source, replication_factor=-1, config=config)])[
                target
            ].result(30)
        except KafkaException as error:
            raise CannotReplay(f"the topic {target} cannot be made: {error.args[0].str()}") from error


class _Pace:
    """Lets so many records a second pass."""

    def __init__(self, rate: float | None) -> None:
        self._interval = None if rate is None else 1.0 / rate
        self._next = time.monotonic()

    def wait(self, meanwhile: Callable[[float], object]) -> None:
        if self._interval is None:
            return
        while (left := self._next - time.monotonic()) > 0:
            meanwhile(min(left, 0.1))
        self._next = max(self._next + self._interval, time.monotonic() - 1.0)


def record_begin(database_url: str, replay: Replay, topic: str, target: str, selection: Selection, who: str) -> None:
    """Write the audit row before the first record leaves."""
    with psycopg.connect(database_url, **CONNECT) as connection:
        connection.execute(
            "INSERT INTO public.replays (id, who, source, target, selection) VALUES (%s, %s, %s, %s, %s)",
            (UUID(replay.id), who, topic, target, orjson.dumps(selection.as_json()).decode()),
        )


def record_end(database_url: str, replay: Replay, sent: int, error: str | None) -> None:
    """Complete the audit row."""
    with psycopg.connect(database_url, **CONNECT) as connection:
        connection.execute(
            "UPDATE public.replays SET finished_at = now(), matched = %s, sent = %s, error = %s WHERE id = %s",
            (replay.found.matched, sent, error, UUID(replay.id)),
        )
