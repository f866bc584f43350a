"""What brings inputs to the log: Debezium, from the outboxes, and the clock, from the stored deadlines."""

from typing import TYPE_CHECKING, Protocol

from saga_processors.records import from_ms
from tests.simulation.database import due_at
from tests.simulation.kafka import Encoded
from tests.simulation.schedule import ASLEEP, Life, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

#: ms for which a clock has a deadline to itself.
_LEASE = 1_500


class Outboxed(Protocol):
    outbox: list[tuple[str, Encoded]]


class Connector:
    """Debezium on some databases: every row at least once, in the order of commits; offsets are stored now and then."""

    def __init__(self, world: "World", databases: list[Outboxed]) -> None:
        self._world = world
        self._databases = databases
        #: Where it goes on after a death.
        self._stored = [0] * len(databases)
        self.process = Process(world.schedule, "connect", self._live)

    @property
    def drained(self) -> bool:
        return all(
            stored >= len(database.outbox) for stored, database in zip(self._stored, self._databases, strict=True)
        )

    def _live(self) -> Life:
        positions = list(self._stored)
        while True:
            moved = False
            for i, database in enumerate(self._databases):
                if self._world.parts.stores_offsets_first:
                    self._stored[i] = len(database.outbox)
                while positions[i] < len(database.outbox):
                    key, value = database.outbox[positions[i]]
                    yield "delivers a row"
                    self._world.send("log", key.encode(), value)
                    positions[i] += 1
                    moved = True
            if moved:
                yield "has delivered"
                self._stored = list(positions)
            else:
                yield ASLEEP


class Clock:
    """``saga_processors.clock``: claims what is due for a while, then produces it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.process = Process(world.schedule, "clock", self._live)
        world.database.wake_clock = self.process.wake
        world.database.clock_lag = world.clock_lag

    def _live(self) -> Life:
        world = self._world
        while True:
            now = world.schedule.now - world.clock_lag
            due = []
            for id, stored in world.database.transactions.items():
                at = due_at(stored)
                if at is not None and at <= now:
                    stored.claimed_until = now + _LEASE
                    due.append((id, stored.next_deadline or 0))
            if due:
                world.schedule.later(_LEASE + 1, self.process.wake)
            for id, deadline in due:
                yield "has claimed"
                record = {"transaction_id": id, "due_at": from_ms(deadline)}
                world.send("log", id.encode(), Encoded("fluxora.DeadlinePassed", record))
            if not due:
                yield ASLEEP
