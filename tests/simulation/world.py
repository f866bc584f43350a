"""One world: the whole platform and its clients, made from a seed, in virtual time.

While it is hostile everything fails as it may; then it is calm, everything must come to its end, and is judged. A world
is the same each time it is made from the same seed, up to the last step.
"""

import asyncio
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from participant import barrier
from saga_processors.codec import progress_to_json
from saga_processors.definition import SagaDefinition
from saga_processors.processor import Processor
from saga_processors.records import HTTP_COMMANDS_TOPIC
from tests.simulation.chance import Chance, Fault
from tests.simulation.clients import Client, Rest, SagaClient, Sweeper, TransactionClient, any_id
from tests.simulation.connect import Clock, Connector
from tests.simulation.database import Database, Session
from tests.simulation.history import History, Violation, demand
from tests.simulation.kafka import PARTITIONS, Encoded, Topic
from tests.simulation.processors import InputLog, Membership, make_processor
from tests.simulation.relay import HttpService, Relay
from tests.simulation.schedule import Schedule
from tests.simulation.services import KafkaService, Resources

#: ms of virtual time in which things go wrong.
CHAOS = 15_000
#: ms of virtual time after which what has not ended is stuck: waits grow up to five minutes.
_STUCK = 3_600_000
#: And steps: most worlds take some hundreds.
_STEPS = 30_000
_HEARTBEAT = 500
#: ms in which nothing may happen before a world counts as come to rest: what was late or frozen has come by then.
_REST = 12_000
#: Types of what a network that keeps no promise may lose: whoever sent it sends it again.
_LOSABLE = {
    "fluxora.StepCommand",
    "fluxora.ParticipantCommand",
    "fluxora.HttpCommand",
    "fluxora.StepReplied",
    "fluxora.ParticipantReplied",
    "fluxora.DeadlinePassed",
}


@dataclass(frozen=True)
class Parts:
    """What a world is made of; tests put broken ones here."""

    processor: Callable[..., Processor] = Processor
    session: Callable[[Database], Session] = Session
    resources: Callable[..., Resources] = Resources
    decide: Callable[[barrier.Step, Any], barrier.Decision] = barrier.decide
    #: Debezium would lose rows.
    stores_offsets_first: bool = False


class World:
    def __init__(self, seed: int, parts: Parts | None = None, only: Set[Fault] | None = None) -> None:
        self.seed = seed
        self.parts = parts or Parts()
        self.chance = Chance(seed, only)
        setup = self.chance.setup
        self.schedule = Schedule(self.chance)
        self.history = History()
        self.history.now = lambda: self.schedule.now
        self.batch_size = setup.choice([1, 3, 20])
        self.cache_size = setup.choice([0, 1, 100])
        #: A network that loses messages and lets them overtake each other, which is more than Kafka does.
        self.wild = setup.random() < 0.4
        #: ms by which the clock's time is behind.
        self.clock_lag = setup.choice([0, 0, 300])
        #: How many times longer than usual it may take.
        self.patience = 1
        self._numbers = 0
        self._restless = 0
        self._topics: dict[str, Topic] = {}
        self.log = self.topic("log")
        self.database = Database(self.schedule, self.history)
        self.services = ["svc-0", "svc-1", "svc-2"]
        self.web_services = ["web-0", "web-1"]
        self.rest = Rest(self)
        self.kafka_services = {name: KafkaService(self, name, setup.choice([1, 1, 2])) for name in self.services}
        self.http_services = {name: HttpService(self, name) for name in self.web_services}
        self.all_services = [*self.kafka_services.values(), *self.http_services.values()]
        self.relay = Relay(self, HTTP_COMMANDS_TOPIC)
        local = [service.database for service in self.kafka_services.values()]
        self.connector = Connector(self, [self.database, *local])
        for database in local:
            database.wake_connector = self.connector.process.wake
        self.clock = Clock(self)
        self.membership = Membership(self, setup.choice([1, 2, 3]))
        self.sweeper = Sweeper(self)
        kinds: list[type[Client]] = [SagaClient] * setup.randrange(0, 4) + [TransactionClient] * setup.randrange(0, 4)
        self.clients = {client.id: client for client in (kind(self, any_id(setup)) for kind in kinds)}
        self.definitions: dict[str, SagaDefinition] = {
            id: client.definition for id, client in self.clients.items() if isinstance(client, SagaClient)
        }

    # What the parts ask for

    def topic(self, name: str) -> Topic:
        if name not in self._topics:
            self._topics[name] = Topic(self.schedule, name)
        return self._topics[name]

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def http_service(self, name: str) -> HttpService:
        return self.http_services[name]

    def send(self, topic: str, key: bytes, value: Encoded | None) -> None:
        """Bring a record to a topic; where the network keeps no promise: not, or twice, or late."""
        to = self.topic(topic)
        if not self.wild or value is None or value.name not in _LOSABLE:
            to.append(key, value)
            return
        place = f"{value.name} {value.record.get('command_id', key.decode())}"
        if self.chance.fault("lost", place, 0.08):
            return
        for _ in range(2 if self.chance.fault("doubled", place, 0.1) else 1):
            if self.chance.fault("late", place, 0.15):
                delay = (5, 50, 700, 3_000)[self.chance.amount("late", place, 4)]
                self.schedule.later(delay, lambda: to.append(key, value) and None)
            else:
                to.append(key, value)

    def check_payload(self, id: str, step: str, payload: Any) -> None:
        """References are resolved to what was answered."""
        demand(payload["customer"] == "c-1", "a reference to the input is resolved", id, step)
        for name, value in payload["of"].items():
            if (id, name, "ACTION") not in self.history.skipped:
                demand(
                    value == self.history.effects[id, name].result["n"], "a reference is what was answered", id, step
                )

    def set_clock(self, lag: int) -> None:
        """Before it runs: put the clock behind by ``lag`` ms, or ahead if it is negative. It never finds out."""
        self.clock_lag = self.database.clock_lag = lag
        # Each wait takes so much longer.
        self.patience = 10 if lag > 0 else 1

    # A run

    def run(self) -> int:
        """Until everything has ended and is judged; returns the steps it took."""
        for client in self.clients.values():
            client.start()
        self.schedule.later(_HEARTBEAT, self._beat)
        try:
            self.schedule.run(self._over)
            demand(self.settled, "everything ends", self._unsettled())
            self.history.judge(self.clients)
            self._rebuild()
        except Violation as violation:
            schedule, faults = self.schedule, len(self.chance.struck)
            violation.add_note(f"at {schedule.now} ms, step {schedule.steps}, after {faults} faults")
            raise
        return self.schedule.steps

    def _over(self) -> bool:
        return self.schedule.steps > self.patience * _STEPS or self.schedule.now > self.patience * _STUCK

    def _beat(self) -> None:
        """What happens now and then."""
        chance = self.chance
        if self.schedule.now >= CHAOS and not chance.calm:
            chance.calm = True
            for service in self.all_services:
                service.resources.restore()
        if chance.fault("rebalance", "the group", 0.15):
            self.schedule.tell("rebalance")
            self.membership.rebalance()
        if chance.fault("database killed", "the coordinator", 0.01):
            self.database.crash()
        if chance.fault("poison", "the log", 0.01):
            self.log.append(b"poison", None)
        if self.schedule.now % 1_000 == 0:
            for host in self.membership.hosts:
                host.look = True
            self.membership.wake()
        if self.schedule.now % 5_000 == 0:
            self.sweeper.once()
        if not (chance.calm and self.settled):
            self._restless = self.schedule.now
        if self.schedule.now - self._restless < _REST:
            self.schedule.later(_HEARTBEAT if self.schedule.now < 2 * CHAOS else 5_000, self._beat)

    @property
    def settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> str:
        for id in self.clients:
            if id not in self.history.machines or not self.history.machines[id].ended:
                return f"{id}: {self.history.machines.get(id)}"
        for partition, records in enumerate(self.log.partitions):
            row = self.database.partitions.get(partition)
            if len(records) > (0 if row is None else row.next_offset):
                return f"partition {partition} is not folded to its end"
        if self.history.unpublished:
            return "not everything has left that was decided"
        if not self.connector.drained:
            return "Debezium has not delivered everything"
        for service in self.kafka_services.values():
            if not all(group.drained for group in service.groups):
                return f"{service.name} has not handled everything"
        return "" if self.relay.group.drained else "the relay has not handled everything"

    def _rebuild(self) -> None:
        """The log folded again from its start, in batches of another size, gives what is stored and was journaled."""
        live, fresh = self.database, Database(Schedule(self.chance), History())
        processor = make_processor(self, Session(fresh), InputLog(self), _Nowhere())
        for records in self.log.partitions:
            _exhaust(processor.handle(records))
        for partition in range(PARTITIONS):
            for offset, row in live.journal.get(partition, {}).items():
                demand(fresh.journal[partition][offset] == row, "a rebuild decides the same", row)
        demand(fresh.transactions.keys() == live.transactions.keys(), "a rebuild knows the same transactions")
        for id, stored in live.transactions.items():
            again = fresh.transactions[id]
            assert stored.machine is not None and again.machine is not None
            demand(stored.machine.state == again.machine.state, "a rebuild equals the live states", id)
            same = progress_to_json(stored.machine) == progress_to_json(again.machine)
            demand(same, "a rebuild equals the live states", id)


class _Nowhere:
    async def publish(self, records: Any) -> None:
        pass


class _AtOnce:
    """Stands for a loop in which every task is over when it begins."""

    def create_task(self, life: Any) -> "_AtOnce":
        _exhaust(life)
        return self

    def __await__(self) -> Iterator[Any]:
        return iter(())


def _exhaust(work: Any) -> None:
    """Run to its end without a pause."""
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(_AtOnce())  # type: ignore[arg-type]
    try:
        while True:
            work.send(None)
    except StopIteration:
        pass
    finally:
        asyncio._set_running_loop(outer)
