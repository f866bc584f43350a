"""What was appended to topics since a moment, read back with its timestamps."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

_TIMEOUT_S = 20.0


class Since:
    """Remembers where topics end, and reads what is appended after. Nothing is committed, no group is joined."""

    def __init__(self, bootstrap_servers: str, topics: Sequence[str]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "fluxora.bench",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 100,
            }
        )
        self._topics = list(topics)
        self._from = self._ends()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def follow(self, take: Callable[[Message], None], until: Callable[[], bool], limit_s: float) -> None:
        """Give each record to ``take`` as it comes, until ``until()``. Raises TimeoutError after ``limit_s``."""
        self._assign()
        deadline = time.monotonic() + limit_s
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all records of {', '.join(self._topics)} have come within {limit_s:.0f} s")
            # `consume` with a timeout waits for all 500, or for all of it; `poll` for one.
            first = self._consumer.poll(0.05)
            for message in [] if first is None else [first, *self._consumer.consume(500, 0)]:
                _raise_error(message)
                take(message)

    def read(self, take: Callable[[Message], None], limit_s: float = 60) -> None:
        """Give each record that is there now to ``take``, a partition's in order. Raises TimeoutError."""
        left = {place: end - self._from[place] for place, end in self._ends().items() if end > self._from.get(place, 0)}
        records = sum(left.values())
        taken = 0

        def count(message: Message) -> None:
            nonlocal taken
            taken += 1
            take(message)

        # What is appended meanwhile may be among them, of another partition: then the last ones are read as well.
        self.follow(count, lambda: taken >= records, limit_s)

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in self._from.items()])

    def _ends(self) -> dict[tuple[str, int], int]:
        found = {}
        for topic in self._topics:
            metadata = self._consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
            for partition in metadata.partitions:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_TIMEOUT_S)
                found[topic, partition] = end
        return found


def seconds_of(message: Message) -> float:
    """A record's timestamp in seconds since 1970."""
    return float(message.timestamp()[1]) / 1000


def make_topic(bootstrap_servers: str, name: str, partitions: int) -> None:
    """Make a topic unless it is there. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    if name not in admin.list_topics(timeout=_TIMEOUT_S).topics:
        admin.create_topics([NewTopic(name, num_partitions=partitions)])[name].result(_TIMEOUT_S)


def _raise_error(message: Message) -> None:
    if (error := message.error()) is not None:
        raise KafkaException(error)
