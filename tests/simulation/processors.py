"""Processor processes: ``saga_processors.processor.Processor`` itself, with a log, a database and brokers in memory.

Delivery is Faust's at its worst: records come again, or are passed over; a partition goes to another process while its
owner is frozen in the middle of a batch, and goes on when it thaws (a zombie).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from saga_processors.partition import Halted, Record
from saga_processors.processor import DLQ_TOPIC, Processor
from saga_processors.records import EVENTS_TOPIC, KafkaRecord
from tests.simulation.database import Session
from tests.simulation.kafka import PARTITIONS, PlainCodec
from tests.simulation.schedule import ASLEEP, Dies, Life, Process, line
from tests.unit.transaction_samples import POLICY

if TYPE_CHECKING:
    from tests.simulation.world import World


class Membership:
    """The consumer group: who owns which partition, and what Faust has committed."""

    def __init__(self, world: "World", members: int) -> None:
        self._chance = world.chance
        #: A hint, and sometimes a wrong one.
        self.committed = [0] * PARTITIONS
        self.hosts = [ProcessorHost(world, self, number) for number in range(members)]
        self.owners = [self.hosts[p % members] for p in range(PARTITIONS)]
        world.log.subscribe(lambda partition: self.owners[partition].process.wake())

    def rebalance(self) -> None:
        """Every partition goes to the next member."""
        self.owners = [self.hosts[(self.hosts.index(owner) + 1) % len(self.hosts)] for owner in self.owners]
        self.wake()

    def wake(self) -> None:
        for host in self.hosts:
            host.process.wake()

    def owned(self, host: "ProcessorHost") -> list[int]:
        return [p for p in range(PARTITIONS) if self.owners[p] is host]


class ProcessorHost:
    """One processor process."""

    def __init__(self, world: "World", membership: Membership, number: int) -> None:
        self._world = world
        self._membership = membership
        self.name = f"processor-{number}"
        #: It is time to look at the log's end.
        self.look = False
        self._session: Session | None = None
        self.process = Process(world.schedule, self.name, self._live, died=self._died, crash_only=(Halted,))

    def _died(self) -> None:
        if self._session is not None:
            self._session.close()

    async def _live(self) -> Life:  # type: ignore[misc]
        world = self._world
        self._session = world.parts.session(world.database)
        processor = make_processor(world, self._session, InputLog(world), Publisher(world, self.name))
        assigned: list[int] = []
        positions: dict[int, int] = {}
        left: list[Record] = []
        while True:
            wanted = self._membership.owned(self)
            if wanted != assigned:
                if revoked := [p for p in assigned if p not in wanted]:
                    await processor.drop(revoked)
                for partition in wanted:
                    if partition not in assigned:
                        positions[partition] = self._membership.committed[partition]
                assigned = wanted
                await processor.adopt(assigned)
            if self.look:
                self.look = False
                await processor.catch_up(assigned, stuck_after=0.0)
            batch = self._delivered(assigned, positions)
            if not batch:
                await processor.settle()
                self._acknowledge(left)
                left = []
                await line(ASLEEP)
                continue
            await processor.handle(batch)
            await line("folded a batch")
            # The effects of these leave while the next ones are folded.
            self._acknowledge(left)
            left = batch

    def _acknowledge(self, records: list[Record]) -> None:
        for record in records:
            ahead = self._world.chance.fault("Faust commits past", self.name, 0.02)
            self._membership.committed[record.partition] = record.offset + 1 + ahead

    def _delivered(self, assigned: Sequence[int], positions: dict[int, int]) -> list[Record]:
        """What Faust hands over; it may pass over records, and hand some over again."""
        chance, log = self._world.chance, self._world.log
        batch: list[Record] = []
        for partition in assigned:
            records = log.partitions[partition]
            start = positions[partition]
            if start >= len(records):
                continue
            place = f"{self.name}: partition {partition}"
            if chance.fault("redelivered", place, 0.1):
                start = max(0, start - 1 - chance.amount("redelivered", place, 4))
            elif chance.fault("skipped", place, 0.1):
                start += 1 + chance.amount("skipped", place, 3)
            batch += records[start : start + self._world.batch_size]
            positions[partition] = max(start, min(start + self._world.batch_size, len(records)))
        return batch


class Publisher:
    """Stands where ``log.Publisher`` would: records leave one by one, and the brokers may go away in between."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._name = name

    async def publish(self, records: Sequence[KafkaRecord]) -> None:
        for record in records:
            await line("publishes")
            if self._world.chance.fault("brokers gone", self._name, 0.01):
                raise Dies("the brokers did not acknowledge")
            self._leaves(record)
        await line("has published")

    def _leaves(self, record: KafkaRecord) -> None:
        history = self._world.history
        headers = dict(record.headers)
        if record.topic == DLQ_TOPIC:
            partition, offset = (headers[f"__connect.errors.{of}"] for of in ("partition", "offset"))
            history.dead_lettered(int(partition or 0), int(offset or 0))
            return
        id = headers["ce_id"]
        assert isinstance(id, bytes)
        history.leaves(id.decode(), record.value)
        if record.topic != EVENTS_TOPIC:
            self._world.send(record.topic, record.key, record.value)  # type: ignore[arg-type]


class InputLog:
    """Stands where ``log.InputLog`` would."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        await line("asks for the log's ends")
        return {p: len(self._world.log.partitions[p]) for p in partitions}

    async def read(self, partition: int, start: int, end: int) -> list[Record]:
        await line("reads the log by offset")
        return self._world.log.partitions[partition][start:end]


def make_processor(world: "World", session: Session, input_log: Any, publisher: Any) -> Processor:
    make: Callable[..., Processor] = world.parts.processor
    return make(
        store=session,
        codec=PlainCodec(),
        input_log=input_log,
        publisher=publisher,
        topic_id="the-topic",
        partitions=PARTITIONS,
        batch_size=world.batch_size,
        cache_size=world.cache_size,
        max_steps=10,
        policy=POLICY,
    )
