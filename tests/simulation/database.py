"""The coordinator's database: ``saga_processors.store.Store`` in memory, with transactions, locks and lost connections.

It keeps the rules of the SQL in ``store``, which the real processor rests on:

- ``begin`` moves every partition with a compare-and-set and locks its row until ``commit``; who comes meanwhile waits,
  and then sees what was committed. One of several that fails lets nothing happen.
- What a process wrote before its ``commit`` is gone with the process, or when it stood still for too long.
- A transaction is written first over nothing (``_upsert``), later in its own partition only (``_update``).
- A stored deadline that is early enough stays, unless a deadline has just been folded.
- ``set_published`` does not wait for the disk: a crash of the database may lose it, never what was committed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from saga_processors.codec import machine_from_json, progress_to_json
from saga_processors.machine import Verdict
from saga_processors.machines import Machine
from saga_processors.partition import Halted, PartitionPosition
from saga_processors.records import to_ms
from saga_processors.store import BatchWrite, Entry, JournalRow, Moves, Unpublished
from tests.simulation.history import History
from tests.simulation.kafka import Encoded
from tests.simulation.schedule import Dies, Point, Schedule, line

#: ms that a session may stand still within its transaction (idle_in_transaction_session_timeout).
_IDLE_LIMIT = 3_000
#: ms between two looks at a row that somebody else has locked.
_LOCK_WAIT = 20
_ANSWERS = {verdict.value for verdict in Verdict}


@dataclass
class PartitionRow:
    next_offset: int = 0
    published_through: int = 0
    #: What of it a crash of the database would leave.
    durable: int = 0


@dataclass
class Stored:
    """A row of ``transactions`` that has been folded."""

    partition: int
    kind: str
    definition: dict[str, Any]
    machine: Machine | None
    parked: bool
    next_deadline: int | None = None
    claimed_until: int | None = None

    def read(self) -> Machine | None:
        """The machine as it comes back from its columns."""
        if self.machine is None:
            return None
        progress = orjson.loads(orjson.dumps(progress_to_json(self.machine)))
        return machine_from_json(self.kind, self.definition, str(self.machine.state), progress)


@dataclass
class Database:
    schedule: Schedule
    history: History
    partitions: dict[int, PartitionRow] = field(default_factory=dict)
    transactions: dict[str, Stored] = field(default_factory=dict)
    journal: dict[int, dict[int, JournalRow]] = field(default_factory=dict)
    answered: dict[str, JournalRow] = field(default_factory=dict)
    #: REST's own outbox, which Debezium reads.
    outbox: list[tuple[str, Encoded]] = field(default_factory=list)
    #: Idempotency keys, and the STARTED rows that REST has written.
    accepted: set[str] = field(default_factory=set)
    locks: dict[int, "Session"] = field(default_factory=dict)
    sessions: list["Session"] = field(default_factory=list)
    #: Told of every deadline that was set.
    wake_clock: Any = None
    #: ms by which the clock's time is behind.
    clock_lag: int = 0

    def crash(self) -> None:
        """kill -9 of PostgreSQL: open transactions are gone, and what nobody waited for may be."""
        self.schedule.tell("the coordinator's database dies and recovers")
        for session in list(self.sessions):
            session.close()
        for row in self.partitions.values():
            row.published_through = row.durable

    def state_of(self, id: str) -> str | None:
        """What GET shows; None: 404."""
        stored = self.transactions.get(id)
        if stored is not None and stored.machine is not None:
            return stored.machine.state
        return "STARTED" if id in self.accepted else None


class ConnectionLost(Dies):
    """The server has ended the session."""


class Session:
    """One processor's connection; stands where ``Store`` would."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._schedule = database.schedule
        self.broken = False
        self._active = 0
        database.sessions.append(self)

    async def _at(self, point: Point) -> None:
        """A statement: the process may die before it, and it fails in a session that the server has ended."""
        await line(point)
        if self.broken:
            raise ConnectionLost("the session stood still for too long, or the server died")

    async def position(self, partition: int, topic_id: str) -> PartitionPosition:
        await self._at("reads a partition row")
        row = self._database.partitions.setdefault(partition, PartitionRow())
        return PartitionPosition(partition, row.next_offset, row.published_through)

    async def unpublished(self, position: PartitionPosition) -> list[Unpublished]:
        await self._at("reads the journal")
        database = self._database
        found = []
        for offset in range(position.published_through, len(database.journal.get(position.partition, ()))):
            row = database.journal[position.partition].get(offset)
            if row is not None and row.effects is not None:
                stored = database.transactions.get(row.transaction_id or "")
                machine = None if stored is None else stored.read()
                found.append(Unpublished(offset, row.transaction_id, row.effects, row.at, machine))
        return found

    async def set_published(self, positions: Iterable[PartitionPosition]) -> None:
        await self._at("stores published_through")
        for position in positions:
            row = self._database.partitions[position.partition]
            row.published_through = max(row.published_through, position.published_through)

    async def begin(self, moves: Moves, ids: Sequence[str], unparking: str | None = None) -> dict[str, Entry]:
        await self._at("begins")
        await self._lock(moves)
        self.check(moves)
        await self._at("has moved the partitions")
        return {id: entry for id in ids if (entry := self._entry(id)) is not None}

    def check(self, moves: Moves) -> None:
        """The compare-and-set."""
        rows = self._database.partitions
        if any(rows[partition].next_offset != position.next_offset for partition, (position, _) in moves.items()):
            self.close()
            raise Halted("another processor owns them now")

    async def _lock(self, moves: Iterable[int]) -> None:
        locks = self._database.locks
        while held := [locks[partition] for partition in moves if partition in locks]:
            for holder in held:
                if self._schedule.now - holder._active > _IDLE_LIMIT:
                    holder.close()
            await self._at(_LOCK_WAIT)
        self._active = self._schedule.now
        locks.update(dict.fromkeys(moves, self))

    def _entry(self, id: str) -> Entry | None:
        stored = self._database.transactions.get(id)
        if stored is None:
            return None
        return Entry(stored.partition, stored.read(), stored.parked, kind=stored.kind)

    async def answered(self, request_ids: Sequence[str]) -> set[tuple[str, str]]:
        found = (self._database.answered.get(id) for id in request_ids)
        return {(row.transaction_id or "", (row.input or {})["request_id"]) for row in found if row is not None}

    async def pruned(self, ids: Sequence[str]) -> dict[str, str]:
        return {}  # nothing is old enough within a world

    async def commit(self, batch: BatchWrite) -> None:
        await self._at("before commit")
        self._check_rows(batch)
        database = self._database
        for row in batch.journal:
            self._journal(row, batch)
        for id, entry in batch.created.items():
            stored = Stored(entry.partition, entry.kind, entry.definition or {}, entry.machine, entry.parked)
            database.transactions[id] = stored
            self._deadline(id, stored, rearm=True)
            database.history.stored(id, None, entry.machine)
        for id, (entry, _) in batch.changed.items():
            stored = database.transactions[id]
            before, stored.machine, stored.parked = stored.machine, entry.machine, entry.parked
            self._deadline(id, stored, rearm=id in batch.rearmed)
            database.history.stored(id, before, entry.machine)
        for partition, (position, next_offset) in batch.moves.items():
            row_ = database.partitions[partition]
            row_.next_offset = next_offset
            row_.published_through = max(row_.published_through, position.published_through)
        for row_ in database.partitions.values():
            row_.durable = row_.published_through
        self.end()
        await line("after commit")

    def _check_rows(self, batch: BatchWrite) -> None:
        known = self._database.transactions
        if any(id in known for id in batch.created) or any(
            id not in known or known[id].partition != entry.partition for id, (entry, _) in batch.changed.items()
        ):
            self.close()
            raise Halted("a transaction was removed, or is folded from another partition")

    def _journal(self, row: JournalRow, batch: BatchWrite) -> None:
        database = self._database
        rows = database.journal.setdefault(row.partition, {})
        database.history.folded(row, twice=row.offset in rows)
        rows[row.offset] = row
        if row.input_type == "fluxora.RequestMade" and row.outcome in _ANSWERS and row.input is not None:
            database.answered.setdefault(row.input["request_id"], row)
        if row.effects and row.transaction_id is not None:
            entry = batch.created.get(row.transaction_id) or batch.changed.get(row.transaction_id, (None,))[0]
            if entry is not None and entry.machine is not None:
                database.history.decided(row, entry.machine)

    def _deadline(self, id: str, stored: Stored, *, rearm: bool) -> None:
        due = None if stored.machine is None or stored.parked else stored.machine.next_deadline
        if due is None or rearm or stored.next_deadline is None or due < stored.next_deadline:
            stored.next_deadline, stored.claimed_until = due, None
        if stored.next_deadline is not None and self._database.wake_clock is not None:
            wait = stored.next_deadline - self._schedule.now + self._database.clock_lag
            self._schedule.later(max(0, wait), self._database.wake_clock)

    def close(self) -> None:
        """The connection is gone, and its transaction with it."""
        self.end()
        self.broken = True
        if self in self._database.sessions:
            self._database.sessions.remove(self)

    def end(self) -> None:
        """No transaction is open: locks are gone."""
        locks = self._database.locks
        for partition in [p for p, holder in locks.items() if holder is self]:
            del locks[partition]


def due_at(stored: Stored) -> int | None:
    """When the clock has to look at it, ms."""
    if stored.next_deadline is None:
        return None
    return max(stored.next_deadline, stored.claimed_until or 0)


__all__ = ["ConnectionLost", "Database", "PartitionRow", "Session", "Stored", "due_at", "to_ms"]
