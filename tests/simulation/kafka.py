"""Kafka: partitions that keep what they were given, and consumers that may see it again."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from saga_processors.partition import Record
from saga_processors.partitioning import partition_of
from saga_processors.records import from_ms
from schemas import UndecodableRecord
from tests.simulation.schedule import Schedule

#: Of every topic.
PARTITIONS = 3

home = lru_cache(maxsize=10_000)(partition_of)


class Encoded(NamedTuple):
    """Stands for Avro bytes. Nobody changes a record that it has been given."""

    name: str
    record: dict[str, Any]


class PlainCodec:
    """Stands where ``schemas.Codec`` would."""

    def encode(self, name: str, record: dict[str, Any]) -> Encoded:
        if isinstance(expires_at := record.get("expires_at"), int):
            # Avro's timestamps are written from either, and read as this.
            record["expires_at"] = from_ms(expires_at)
        return Encoded(name, record)

    def decode(self, value: Encoded | None) -> Encoded:
        if value is None:
            raise UndecodableRecord("no bytes")
        return value


class Topic:
    def __init__(self, schedule: Schedule, name: str) -> None:
        self.name = name
        self.partitions: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        self._schedule = schedule
        self._readers: list[Callable[[int], None]] = []

    def append(self, key: bytes, value: Any) -> Record:
        partition = home(key, PARTITIONS)
        records = self.partitions[partition]
        record = Record(partition, len(records), self._schedule.now, key, value)
        records.append(record)
        for told in self._readers:
            told(partition)
        return record

    def subscribe(self, told: Callable[[int], None]) -> None:
        """Call ``told`` with the partition of every new record."""
        self._readers.append(told)


class Group:
    """What the brokers keep of a consumer group with one member: the committed offsets, which outlive it."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.committed = [0] * PARTITIONS

    @property
    def drained(self) -> bool:
        return all(done >= len(records) for done, records in zip(self.committed, self.topic.partitions, strict=True))


class Consumer:
    """One member's life: it begins at what was committed."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.positions = list(group.committed)
        self._turn = 0

    def poll(self, most: int) -> Sequence[Record]:
        """Up to ``most`` records of one partition, in order; partitions take turns."""
        for _ in range(PARTITIONS):
            self._turn = (self._turn + 1) % PARTITIONS
            records = self._group.topic.partitions[self._turn]
            position = self.positions[self._turn]
            if position < len(records):
                batch = records[position : position + most]
                self.positions[self._turn] = position + len(batch)
                return batch
        return ()

    def commit(self, record: Record) -> None:
        """Everything of its partition up to ``record`` is done with."""
        self._group.committed[record.partition] = record.offset + 1
