"""The input topic, read by offset and written to, with confluent-kafka; beside Faust, and independent of it."""

import asyncio
import time
from collections.abc import Sequence

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]
from prometheus_client import Counter

from saga_processors.partition import Halted, Record
from saga_processors.records import KafkaRecord

INPUT_TOPIC = "fluxora.transactions"
#: The processors' consumer group, and the name Faust gives to what it makes.
APP_ID = "fluxora.saga-processors"
_READ_TIMEOUT_S = 30.0
#: Bytes of a record, key and headers included. Our topics take as much (fluxora.topics); a compensation carries the
#: step's payload and its result, which are each limited to less than half of it where they come in.
MAX_RECORD_BYTES = 2 * 1024 * 1024

#: The brokers will never make a topic of this name.
_IMPOSSIBLE = (KafkaError.TOPIC_EXCEPTION, KafkaError.POLICY_VIOLATION)

log = structlog.get_logger()

UNDELIVERABLE = Counter("fluxora_effects_undeliverable_total", "Commands whose topic the brokers refuse to make")


class InputLog:
    """Reads the input topic where Faust cannot be trusted: gaps, ends of partitions, the topic's identity.

    The calls block in a thread; one at a time.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                # Never subscribed and never committed: the group's name only has to be there.
                "group.id": "fluxora.input-log-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "auto.offset.reset": "error",
            }
        )

    async def partition_count(self) -> int:
        """Return how many partitions the input topic has. It never changes: more come with another topic."""
        described = await asyncio.to_thread(
            lambda: self._admin.describe_topics(TopicCollection([INPUT_TOPIC]))[INPUT_TOPIC].result(_READ_TIMEOUT_S)
        )
        return len(described.partitions)

    async def topic_id(self) -> str:
        """Return Kafka's id of the input topic; it changes when a topic is deleted and made again."""
        described = await asyncio.to_thread(
            lambda: self._admin.describe_topics(TopicCollection([INPUT_TOPIC]))[INPUT_TOPIC].result(_READ_TIMEOUT_S)
        )
        return str(described.topic_id)

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return for each partition the offset that its next record will have.

        A partition of which the brokers do not know it now (they are away, or electing a leader) is left out: ask again
        later.
        """
        asked = {TopicPartition(INPUT_TOPIC, p): OffsetSpec.latest() for p in partitions}  # type: ignore[no-untyped-call]
        found = {}
        try:
            for partition, future in (
                await asyncio.to_thread(lambda: self._admin.list_offsets(asked, request_timeout=5))
            ).items():
                offset = (await asyncio.wrap_future(future)).offset
                # From a broker that has just come back and knows no leader yet: no offset, and no error.
                if offset >= 0:
                    found[partition.partition] = offset
        except KafkaException as error:
            log.warning("the ends of the log are not known now", error=str(error))
            found = {}
        if len(found) < len(asked):
            # After a restart of the broker the client goes on asking with the leader epoch it has cached
            # (FENCED_LEADER_EPOCH, every time): only a new one learns the new epoch.
            self._admin = AdminClient({"bootstrap.servers": self._bootstrap_servers})
        return found

    async def read(self, partition: int, start: int, end: int) -> list[Record]:
        """Return the records of ``[start, end)``.

        Raises:
            Halted: the log no longer holds them all (retention has passed inputs that were never folded).
        """
        return await asyncio.to_thread(self._read, partition, start, end)

    def _read(self, partition: int, start: int, end: int) -> list[Record]:
        records: list[Record] = []
        self._consumer.assign([TopicPartition(INPUT_TOPIC, partition, start)])
        give_up = time.monotonic() + _READ_TIMEOUT_S
        try:
            while start + len(records) < end:
                if time.monotonic() > give_up:
                    raise TimeoutError(f"reading {INPUT_TOPIC}[{partition}] {start}..{end} took too long")
                for message in self._consumer.consume(min(end - start - len(records), 1_000), timeout=1.0):
                    expected = start + len(records)
                    if (error := message.error()) is not None:
                        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                            raise _lost(partition, expected)
                        raise KafkaException(error)
                    offset = message.offset()
                    assert offset is not None
                    if offset >= end:
                        break
                    if offset != expected:
                        raise _lost(partition, expected)
                    records.append(
                        Record(
                            partition, offset, message.timestamp()[1], _bytes(message.key()), _bytes(message.value())
                        )
                    )
        finally:
            self._consumer.unassign()
        return records

    def close(self) -> None:
        self._consumer.close()


def _lost(partition: int, offset: int) -> Halted:
    return Halted(
        f"{INPUT_TOPIC}[{partition}] no longer holds offset {offset}, which was never folded: retention has passed it. "
        "Transactions may wait for inputs that are gone. Raise the topic's retention, look for them with "
        f"`SELECT * FROM transactions WHERE partition = {partition} AND state NOT IN ('COMPLETED', 'FAILED')`, "
        "and set partitions.next_offset by hand when you have decided what to do."
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


class Publisher:
    """The one place where effects leave. A batch is acknowledged by the brokers before anything goes on."""

    def __init__(self, bootstrap_servers: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                # Order and no duplicates within this process; across a crash the receivers drop second copies.
                "enable.idempotence": True,
                "message.timeout.ms": int(timeout_s * 1000),
                "linger.ms": 1,
                "message.max.bytes": MAX_RECORD_BYTES,
                # What Java producers, and so Debezium, use: a key has one partition whoever writes it.
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 1_000_000,
                # Nothing is called for what is acknowledged; ``flush`` says when all of it is.
                "delivery.report.only.error": True,
            }
        )
        self._failed: list[str] = []
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        #: Topics that were there when they were first needed.
        self._known: set[str] = set()

    async def publish(self, records: Sequence[KafkaRecord]) -> None:
        """Send ``records`` in order and wait until every one is acknowledged.

        Raises:
            ConnectionError: one was not; the process must end, its successor publishes them all again.
        """
        if records:
            await asyncio.to_thread(self._publish, records)

    def _publish(self, records: Sequence[KafkaRecord]) -> None:
        needed = {record.topic for record in records} - self._known
        impossible = {topic for topic in needed if not self._ensure(topic)}
        for record in records:
            if record.topic in impossible:
                UNDELIVERABLE.inc()
                continue
            while True:
                try:
                    self._producer.produce(
                        record.topic, record.value, record.key, headers=record.headers, on_delivery=self._delivered
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
        waiting = self._producer.flush(self._timeout_s)
        if waiting or self._failed:
            raise ConnectionError(
                f"{waiting} of {len(records)} effects were not acknowledged within {self._timeout_s} s, "
                f"{len(self._failed)} failed: {self._failed[:3]}"
            )

    def _ensure(self, topic: str) -> bool:
        """Make ``topic`` if it is missing; return whether it can be there at all.

        A saga that a service started through its outbox may name a service that is not there (yet). Its commands
        wait in the topic; without one the batch could not leave, nor any batch after it. For the same reason a command
        whose topic the brokers refuse to make (``a_b.commands`` beside ``a.b.commands``: their metrics could not tell
        them apart) is left out: no service can read it, and its timer tells the machine that nobody answers.
        """
        if topic not in self._admin.list_topics(timeout=self._timeout_s).topics:
            log.warning("the topic is missing; making it", topic=topic)
            new = NewTopic(topic, -1, -1, config={"max.message.bytes": str(MAX_RECORD_BYTES)})
            try:
                self._admin.create_topics([new])[topic].result(self._timeout_s)
            except KafkaException as error:
                code = error.args[0].code()
                if code in _IMPOSSIBLE and topic.endswith(".commands"):
                    log.error("the brokers refuse this topic; its commands are left out", topic=topic, error=str(error))
                    return False
                if code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        self._known.add(topic)
        return True

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(f"{message.topic()}: {error}")
