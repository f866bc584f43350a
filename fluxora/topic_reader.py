"""Reading a part of a topic, once and to its end: for whoever looks back (history, replay, audit).

The ends are fixed before the first record is read, so reading ends however fast the topic grows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from participant.membership import sound
from schemas import FluxoraError

#: Seconds without a record from a partition that has more.
SILENCE_S = 30.0
_TIMEOUT_S = 10.0
#: Of a record there may be a megabyte and more, and what is read is in memory twice: the consumer's queue, our batch.
_QUEUE_KBYTES = 16 * 1024
_BATCH = 100

#: Records read, records to read.
Progress = Callable[[int, int], None]


class TopicUnavailable(FluxoraError):
    """The topic is not there, or the brokers do not answer. Nothing was changed."""


class NoSuchTopic(TopicUnavailable):
    """The brokers say that the topic is not there."""


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets of one partition: ``[start, end)``."""

    partition: int
    start: int
    end: int

    def first(self) -> "Range":
        """Its first record only."""
        return Range(self.partition, self.start, self.start + 1)


class TopicReader:
    """Reads one topic. Use as a context manager; not for concurrent use."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                # Never subscribed and never committed: the group's name only has to be there.
                "group.id": "fluxora.reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "queued.max.messages.kbytes": _QUEUE_KBYTES,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def ranges(self, *, since: int | None = None, until: int | None = None) -> list[Range]:
        """What the topic holds now, of every partition that holds anything.

        Args:
            since: records from this time on, ms; by the topic's timestamps.
            until: records before this time, ms.

        Raises:
            NoSuchTopic: the topic is not there.
            TopicUnavailable: the brokers do not answer.
        """
        try:
            found = self._consumer.list_topics(self._topic, timeout=_TIMEOUT_S)
            topic = found.topics[self._topic]
            # Brokers that have just come back know neither themselves nor all of their topics.
            if found.brokers and topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise NoSuchTopic(f"there is no topic {self._topic!r} ({topic.error.str()})")
            if not found.brokers or topic.error is not None:
                raise KafkaException(topic.error or KafkaError(KafkaError._ALL_BROKERS_DOWN))
            partitions = sorted(topic.partitions)
            bounds = {
                p: self._consumer.get_watermark_offsets(TopicPartition(self._topic, p), timeout=_TIMEOUT_S)
                for p in partitions
            }
            starts = self._offsets_at(partitions, since)
            ends = self._offsets_at(partitions, until)
        except KafkaException as error:
            raise self._unavailable(error) from error
        found = []
        for p in partitions:
            low, high = bounds[p]
            start, end = max(low, starts.get(p, low)), min(high, ends.get(p, high))
            if start < end:
                found.append(Range(p, start, end))
        return found

    def _offsets_at(self, partitions: Sequence[int], ms: int | None) -> dict[int, int]:
        """The first offset at or after a time; partitions without one are those that end before it."""
        if ms is None:
            return {}
        asked = [TopicPartition(self._topic, p, max(0, ms)) for p in partitions]
        found = sound(self._consumer.offsets_for_times(asked, timeout=_TIMEOUT_S), known=True)
        # A negative offset means "the end": no record is that late.
        return {one.partition: one.offset if one.offset >= 0 else 2**62 for one in found}

    def read(self, ranges: Sequence[Range], progress: Progress | None = None) -> Iterator[Message]:
        """Yield the records of ``ranges``; each partition's in order.

        Raises:
            TopicUnavailable: the brokers do not answer for half a minute.
        """
        ends = {one.partition: one.end for one in ranges}
        total = sum(one.end - one.start for one in ranges)
        seen, heard = 0, time.monotonic()
        self._consumer.assign([TopicPartition(self._topic, one.partition, one.start) for one in ranges])
        try:
            while ends:
                messages = self._consumer.consume(_BATCH, timeout=0.5)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENCE_S:
                    raise TopicUnavailable(f"{self._topic} has not answered for {SILENCE_S:g} s")
                for message in messages:
                    partition, offset, error = message.partition() or 0, message.offset(), message.error()
                    if error is not None:
                        if error.code() != KafkaError._PARTITION_EOF:
                            raise self._unavailable(KafkaException(error))
                        ends.pop(partition, None)
                        continue
                    assert offset is not None
                    if partition not in ends:
                        continue
                    if offset < ends[partition]:
                        seen += 1
                        yield message
                    # Transactional topics have markers in place of records, so the last offset may never come.
                    if offset >= ends[partition] - 1:
                        del ends[partition]
                if progress is not None:
                    progress(seen, total)
        except KafkaException as error:
            raise self._unavailable(error) from error
        finally:
            self._consumer.unassign()

    def _unavailable(self, error: KafkaException) -> TopicUnavailable:
        return TopicUnavailable(f"Kafka at {self._bootstrap_servers}, topic {self._topic}: {error.args[0].str()}")


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    """A record's headers in their order; a name may come more than once."""
    # The stubs allow a mapping too; what was received is always a list of pairs.
    headers = cast(list[tuple[str, str | bytes | None]], message.headers() or [])
    return [(name, as_bytes(value)) for name, value in headers]


def as_bytes(value: str | bytes | None) -> bytes | None:
    """A key or a value, whose stubs allow text too."""
    return value.encode() if isinstance(value, str) else value
