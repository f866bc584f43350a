"""All SQL of the processor. One transaction a batch: partition rows, states and journal (DESIGN section 1).

Statements are set-based and sent in psycopg's pipeline mode: two round trips a batch whatever its size.
"""

import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import orjson
import psycopg
import structlog
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads

from participant.arrays import plain_array, text_array
from participant.settings import CONNECT
from saga_processors.codec import machine_from_json, name_of, progress_to_json, services_of
from saga_processors.machine import Verdict
from saga_processors.machines import Machine
from saga_processors.partition import Halted, PartitionPosition
from saga_processors.reason import describe
from saga_processors.records import from_ms
from saga_processors.transaction import Transaction

log = structlog.get_logger()

#: PostgreSQL limits a NOTIFY payload to 8000 bytes; an id takes 37.
_IDS_PER_NOTIFY = 200
#: Ids of transactions that somebody may be waiting for; the coordinator listens.
CHANGED_CHANNEL = "fluxora_changed"
EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(slots=True)
class Entry:
    """A transaction as the processor knows it between batches."""

    partition: int
    machine: Machine | None
    #: Inputs of this transaction are queued in the journal because the machine failed on one.
    parked: bool = False
    #: Why its row could not be read. Its next input parks it; what is stored stays as it is.
    unreadable: str | None = None
    #: ``transactions.definition``, kept only until the first write.
    definition: dict[str, Any] | None = None
    #: ``transactions.kind``.
    kind: str = "saga"
    #: How many participants of a two-phase commit ``transactions.services`` holds.
    stored_participants: int = 0
    #: The log's time of the first and the latest input, where the machine does not say.
    seen_at: datetime = EPOCH

    @property
    def created_at(self) -> datetime:
        return self.seen_at if self.machine is None else from_ms(self.machine.created_at)

    @property
    def updated_at(self) -> datetime:
        return self.seen_at if self.machine is None else from_ms(self.machine.updated_at)


@dataclass(slots=True)
class JournalRow:
    partition: int
    offset: int
    transaction_id: str | None
    input_type: str
    input: dict[str, Any] | None
    outcome: str
    reason: str | None
    state: str | None
    effects: list[dict[str, Any]] | None
    at: datetime


#: Of a batch, for each partition: the position it stood at, and the offset it stands at afterwards.
Moves = dict[int, tuple[PartitionPosition, int]]


@dataclass(slots=True)
class BatchWrite:
    """What one batch changes. Ids map to what is to be written of the transaction."""

    moves: Moves = field(default_factory=dict)
    journal: list[JournalRow] = field(default_factory=list)
    #: Transactions whose first input is in this batch.
    created: dict[str, Entry] = field(default_factory=dict)
    #: Transactions that had been folded before, and how many inputs of this batch changed them.
    changed: dict[str, tuple[Entry, int]] = field(default_factory=dict)
    #: Those that got a DeadlinePassed: their deadline is set anew in any case.
    rearmed: set[str] = field(default_factory=set)
    #: Those that ended, were asked for something, or (two-phase commits) changed their state.
    awaited: set[str] = field(default_factory=set)
    #: A parked transaction that goes on, and the rows of its inputs that had been queued, folded now.
    unparked: str | None = None
    refolded: list[JournalRow] = field(default_factory=list)
    #: Transaction and request_id of requests that have their answer, in the journal or in this batch.
    answered: set[tuple[str, str]] = field(default_factory=set)
    #: Inputs by type and outcome, for the metrics.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Of the transactions that this batch would begin, those that have ended and are pruned, with how they ended.
    pruned: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """A journal row whose effects may not have left."""

    offset: int
    transaction_id: str | None
    effects: list[dict[str, Any]]
    at: datetime
    machine: Machine | None
    #: Why there is no machine though its row holds one.
    unreadable: str | None = None


class Store:
    """The processor's connection to the coordinator's database. Not for concurrent use.

    Any error leaves the process to be ended: what was not committed comes again from the log.
    """

    def __init__(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, url: str, application_name: str, *, idle_limit: float, schema: str = "public") -> Self:
        """Connect; ``idle_limit`` is how many seconds a process that stands still may keep its locks.

        ``schema`` holds the tables; another one than ``public`` is for tables that are rebuilt beside the live ones.

        Without the limit a process that is frozen within a batch would hold its partition rows, and with them its
        successor, for as long as it stays frozen.
        """
        set_json_loads(orjson.loads)
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            application_name=application_name,
            prepare_threshold=2,
            **CONNECT,
            # Everything here finds its rows by key. A plan that reads whole tables, because they were small when it was
            # made, would stay until they are analyzed.
            options=f"-c idle_in_transaction_session_timeout={int(idle_limit * 1000)} -c search_path={schema} "
            "-c enable_seqscan=off",
        )
        return cls(connection)

    async def close(self) -> None:
        await self._connection.close()

    async def position(self, partition: int, topic_id: str) -> PartitionPosition:
        """Return where ``partition`` stands, making its row on the first call ever.

        Raises:
            Halted: the row belongs to another topic of the same name; offsets would mean something else.
        """
        await self._connection.execute(
            "INSERT INTO partitions (partition, topic_id, next_offset, published_through) "
            "VALUES (%s, %s, 0, 0) ON CONFLICT DO NOTHING",
            (partition, topic_id),
        )
        cursor = await self._connection.execute(
            "SELECT topic_id, next_offset, published_through FROM partitions WHERE partition = %s", (partition,)
        )
        row = await cursor.fetchone()
        assert row is not None
        if row[0] != topic_id:
            raise Halted(
                f"partition {partition} was folded from the topic with id {row[0]}, but the topic there now has id "
                f"{topic_id}: it was deleted and made again. Its inputs would be read from the wrong place. "
                "Restore the topic, or rebuild the states from it into a fresh database."
            )
        return PartitionPosition(partition, next_offset=row[1], published_through=row[2])

    async def unpublished(self, position: PartitionPosition) -> list[Unpublished]:
        """Return the journal rows whose effects may not have left, in order of the log.

        Those that were withheld (:meth:`withhold`) are among them as soon as their transaction is no longer parked.
        """
        columns = 'j."offset", j.transaction_id::text, j.effects, j.at, t.kind, t.definition::text, t.state'
        cursor = await self._connection.execute(
            f"SELECT {columns}, t.progress::text FROM journal j LEFT JOIN transactions t ON t.id = j.transaction_id "
            'WHERE j.partition = %(partition)s AND j."offset" >= %(from)s AND j.effects IS NOT NULL '
            f'UNION ALL SELECT {columns}, t.progress::text FROM withheld w JOIN journal j USING (partition, "offset") '
            "JOIN transactions t ON t.id = j.transaction_id AND NOT t.parked "
            'WHERE w.partition = %(partition)s AND w."offset" < %(from)s ORDER BY 1',
            {"partition": position.partition, "from": position.published_through},
        )
        return [
            Unpublished(offset, id, effects, at, *_read(*stored))
            for offset, id, effects, at, *stored in await cursor.fetchall()
        ]

    async def withhold(self, position: PartitionPosition, kept: Sequence[tuple[Unpublished, str]]) -> None:
        """Record that all of :meth:`unpublished` has left but ``kept``, with why; park the transactions of those.

        One transaction. A crash before its commit: whoever has the partition publishes, and comes here, again.

        Raises:
            Halted: another process has moved the partition; nothing was written.
        """
        async with self._connection.transaction():
            moved = await self._connection.execute(
                "UPDATE partitions SET published_through = next_offset WHERE partition = %s AND next_offset = %s",
                (position.partition, position.next_offset),
            )
            if moved.rowcount != 1:
                raise Halted(f"partition {position.partition} was moved by another processor. Nothing was written.")
            await self._connection.execute(
                "DELETE FROM withheld w USING journal j, transactions t WHERE w.partition = %s "
                'AND j.partition = w.partition AND j."offset" = w."offset" AND t.id = j.transaction_id '
                "AND NOT t.parked",
                (position.partition,),
            )
            await self._connection.execute(
                'INSERT INTO withheld (partition, "offset", reason) '
                "SELECT %s, * FROM unnest(%s::bigint[], %s::text[]) ON CONFLICT DO NOTHING",
                (position.partition, [row.offset for row, _ in kept], text_array(reason for _, reason in kept)),
            )
            await self._connection.execute(
                "UPDATE transactions SET parked = true, needs_attention = true, next_deadline = NULL, "
                "deadline_claimed_until = NULL WHERE id = ANY(%s::uuid[])",
                (text_array({row.transaction_id for row, _ in kept}),),
            )

    async def set_published(self, positions: Iterable[PartitionPosition]) -> None:
        """Record how far effects have left, without waiting for the disk: losing it costs only duplicates."""
        rows = [(p.partition, p.published_through) for p in positions]
        async with self._connection.transaction():
            await self._connection.execute("SET LOCAL synchronous_commit = off")
            await self._connection.execute(
                "UPDATE partitions p SET published_through = v.published "
                "FROM unnest(%s::smallint[], %s::bigint[]) v (partition, published) "
                "WHERE p.partition = v.partition AND p.published_through < v.published",
                ([row[0] for row in rows], [row[1] for row in rows]),
            )

    async def begin(self, moves: Moves, ids: Sequence[str], unparking: str | None = None) -> dict[str, Entry]:
        """Open the batch's transaction: move every partition forward, then read the states of ``ids``.

        The compare-and-set locks the partition rows until :meth:`commit`, so of two processes that believe they
        own a partition only one gets further, and what it reads then is what the other one committed.

        Args:
            unparking: one of ``ids`` whose machine is read though it is parked.

        Raises:
            Halted: another process has moved a partition; this one is a zombie and must let go.
        """
        async with self._connection.pipeline():
            await self._connection.execute("BEGIN")
            moved = await self._connection.execute(
                "UPDATE partitions p SET next_offset = v.next, updated_at = now(), "
                "published_through = greatest(p.published_through, v.published) "
                "FROM unnest(%s::smallint[], %s::bigint[], %s::bigint[], %s::bigint[]) "
                "v (partition, expected, next, published) "
                "WHERE p.partition = v.partition AND p.next_offset = v.expected",
                (
                    plain_array(moves),
                    plain_array(position.next_offset for position, _ in moves.values()),
                    plain_array(next_offset for _, next_offset in moves.values()),
                    plain_array(position.published_through for position, _ in moves.values()),
                ),
            )
            found = (
                await self._connection.execute(
                    "SELECT id::text, partition, parked, kind, definition::text, state, progress::text "
                    "FROM transactions WHERE id = ANY(%s::uuid[]) AND (version > 0 OR parked)",
                    (text_array(ids),),
                )
                if ids
                else None
            )
        if moved.rowcount != len(moves):
            raise Halted(
                f"of partitions {sorted(moves)}, {len(moves) - moved.rowcount} no longer stood where this process "
                "left them: another processor owns them now. Nothing was written."
            )
        rows = await found.fetchall() if found is not None else []
        loaded = {}
        for id, partition, parked, kind, *stored in rows:
            # Nothing is folded into a parked one, so it need not be readable.
            machine, unreadable = (None, None) if parked and id != unparking else _read(kind, *stored)
            loaded[id] = Entry(partition, machine, parked, unreadable, kind=kind)
            loaded[id].stored_participants = _participants(machine)
        return loaded

    async def answered(self, request_ids: Sequence[str]) -> set[tuple[str, str]]:
        """Return transaction and request_id of those of the requests that the journal holds an answer to.

        Within the transaction that :meth:`begin` opened: nobody else folds these transactions meanwhile.
        """
        cursor = await self._connection.execute(
            "SELECT transaction_id::text, input ->> 'request_id' FROM journal "
            "WHERE input_type = 'fluxora.RequestMade' AND input ->> 'request_id' = ANY(%s::text[]) "
            "AND outcome = ANY(%s::text[])",
            (text_array(request_ids), text_array(Verdict)),
        )
        return {(row[0], row[1]) for row in await cursor.fetchall()}

    async def pruned(self, ids: Sequence[str]) -> dict[str, str]:
        """Return those of ``ids`` that are pruned, with the state in which they ended. Within :meth:`begin`'s
        transaction."""
        cursor = await self._connection.execute(
            "SELECT id::text, state FROM pruned_transactions WHERE id = ANY(%s::uuid[])", (text_array(ids),)
        )
        return {row[0]: row[1] for row in await cursor.fetchall()}

    async def commit(self, batch: BatchWrite) -> None:
        """Write the batch and commit. After it the decisions stand, whatever dies.

        Raises:
            Halted: a transaction belongs to another partition, or was removed: nothing is written.
        """
        awaited = list(batch.awaited)
        async with self._connection.pipeline():
            if batch.unparked is not None:
                await self._unpark(batch.unparked, batch.refolded)
            await self._insert_journal(batch.journal)
            created = await self._upsert(batch.created) if batch.created else None
            changed = await self._update(batch) if batch.changed else None
            for i in range(0, len(awaited), _IDS_PER_NOTIFY):
                ids = ",".join(awaited[i : i + _IDS_PER_NOTIFY])
                await self._connection.execute("SELECT pg_notify(%s, %s)", (CHANGED_CHANNEL, ids))
        written = (created.rowcount if created else 0) + (changed.rowcount if changed else 0)
        if written != len(batch.created) + len(batch.changed):
            raise Halted(
                f"of {len(batch.created) + len(batch.changed)} transactions only {written} could be written: "
                "the others were removed or are folded from another partition. Nothing was committed."
            )
        await self._connection.execute("COMMIT")

    async def queued(self, transaction_id: str, partition: int) -> list[int]:
        """Return the offsets of the inputs that wait behind the one that parked the transaction, and its own."""
        cursor = await self._connection.execute(
            "SELECT \"offset\" FROM journal WHERE transaction_id = %s AND partition = %s AND outcome = 'PARKED' "
            'ORDER BY "offset"',
            (transaction_id, partition),
        )
        return [row[0] for row in await cursor.fetchall()]

    async def _unpark(self, transaction_id: str, rows: Sequence[JournalRow]) -> None:
        """Before what was folded is written: the first write of a transaction passes over no parked one.

        What was decided now leaves by way of ``withheld``: its rows are older than what has been published.
        """
        await self._connection.execute(
            "UPDATE transactions SET parked = false, needs_attention = false WHERE id = %s", (transaction_id,)
        )
        await self._connection.execute(
            "UPDATE journal j SET input = v.input, outcome = v.outcome, reason = v.reason, state = v.state, "
            "effects = v.effects FROM unnest(%s::smallint[], %s::bigint[], %s::json[], %s::text[], %s::text[], "
            "%s::text[], %s::json[]) v (partition, number, input, outcome, reason, state, effects) "
            'WHERE j.partition = v.partition AND j."offset" = v.number',
            (
                plain_array(row.partition for row in rows),
                plain_array(row.offset for row in rows),
                text_array(_json(row.input) for row in rows),
                text_array(row.outcome for row in rows),
                text_array(row.reason for row in rows),
                text_array(row.state for row in rows),
                text_array(_json(row.effects) for row in rows),
            ),
        )
        await self._connection.execute(
            "INSERT INTO withheld (partition, \"offset\", reason) SELECT *, 'it was folded late' "
            "FROM unnest(%s::smallint[], %s::bigint[]) ON CONFLICT DO NOTHING",
            ([row.partition for row in rows if row.effects], [row.offset for row in rows if row.effects]),
        )

    async def _insert_journal(self, rows: Sequence[JournalRow]) -> None:
        await self._connection.execute(
            'INSERT INTO journal (partition, "offset", transaction_id, input_type, input, outcome, reason, state, '
            "effects, at) SELECT * FROM unnest(%s::smallint[], %s::bigint[], %s::uuid[], %s::text[], %s::json[], "
            "%s::text[], %s::text[], %s::text[], %s::json[], %s::timestamptz[])",
            (
                plain_array(row.partition for row in rows),
                plain_array(row.offset for row in rows),
                text_array(row.transaction_id for row in rows),
                text_array(row.input_type for row in rows),
                text_array(_json(row.input) for row in rows),
                text_array(row.outcome for row in rows),
                text_array(row.reason for row in rows),
                text_array(row.state for row in rows),
                text_array(_json(row.effects) for row in rows),
                plain_array(row.at for row in rows),
            ),
        )

    async def _upsert(self, created: dict[str, Entry]) -> psycopg.AsyncCursor[TupleRow]:
        """First write of transactions; over the STARTED row that REST may have written, never over a folded one."""
        entries = list(created.values())
        return await self._connection.execute(
            "INSERT INTO transactions (id, kind, name, state, services, partition, version, definition, progress, "
            "needs_attention, parked, next_deadline, created_at, updated_at) "
            "SELECT id, kind, name, state, services::text[], partition, version, definition, progress, "
            "attention, parked, deadline, created_at, updated_at "
            "FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::smallint[], %s::int[], "
            "%s::json[], %s::json[], %s::bool[], %s::bool[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[]) "
            "v (id, kind, name, state, services, partition, version, definition, progress, attention, parked, "
            "deadline, created_at, updated_at) "
            "ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, name = excluded.name, state = excluded.state, "
            "services = excluded.services, partition = excluded.partition, version = excluded.version, "
            "definition = excluded.definition, progress = excluded.progress, "
            "needs_attention = excluded.needs_attention, parked = excluded.parked, "
            "next_deadline = excluded.next_deadline, updated_at = excluded.updated_at "
            "WHERE transactions.version = 0 AND NOT transactions.parked",
            (
                text_array(created),
                text_array(entry.kind for entry in entries),
                text_array(name_of(entry.kind, entry.definition or {}) for entry in entries),
                text_array(_state(entry) for entry in entries),
                text_array(_services(entry) for entry in entries),
                plain_array(entry.partition for entry in entries),
                plain_array(0 if entry.machine is None else 1 for entry in entries),
                text_array(_json(entry.definition) for entry in entries),
                text_array(_progress(entry) for entry in entries),
                plain_array(_attention(entry) for entry in entries),
                plain_array(entry.parked for entry in entries),
                plain_array(_deadline(entry) for entry in entries),
                plain_array(entry.created_at for entry in entries),
                plain_array(entry.updated_at for entry in entries),
            ),
        )

    async def _update(self, batch: BatchWrite) -> psycopg.AsyncCursor[TupleRow]:
        """Later writes. A stored deadline that is early enough stays (tables.py says why)."""
        entries = [entry for entry, _ in batch.changed.values()]
        return await self._connection.execute(
            "UPDATE transactions t SET state = coalesce(v.state, t.state), version = t.version + v.folded, "
            "progress = coalesce(v.progress, t.progress), "
            "needs_attention = v.attention, parked = v.parked, updated_at = greatest(t.updated_at, v.updated_at), "
            "services = coalesce(v.services::text[], t.services), "
            "next_deadline = CASE WHEN v.deadline IS NULL OR v.rearm OR t.next_deadline IS NULL "
            "OR v.deadline < t.next_deadline THEN v.deadline ELSE t.next_deadline END, "
            "deadline_claimed_until = CASE WHEN v.deadline IS NULL OR v.rearm OR t.next_deadline IS NULL "
            "OR v.deadline < t.next_deadline THEN NULL ELSE t.deadline_claimed_until END "
            "FROM unnest(%s::uuid[], %s::smallint[], %s::text[], %s::int[], %s::json[], %s::bool[], %s::bool[], "
            "%s::timestamptz[], %s::timestamptz[], %s::bool[], %s::text[]) "
            "v (id, partition, state, folded, progress, attention, parked, updated_at, deadline, rearm, services) "
            "WHERE t.id = v.id AND t.partition = v.partition",
            (
                text_array(batch.changed),
                plain_array(entry.partition for entry in entries),
                # Of one that could not be read nothing but the parking is written.
                text_array(None if entry.machine is None else entry.machine.state for entry in entries),
                plain_array(folded for _, folded in batch.changed.values()),
                text_array(_progress(entry) for entry in entries),
                plain_array(_attention(entry) for entry in entries),
                plain_array(entry.parked for entry in entries),
                plain_array(entry.updated_at for entry in entries),
                plain_array(_deadline(entry) for entry in entries),
                plain_array(id in batch.rearmed for id in batch.changed),
                text_array(_changed_services(entry) for entry in entries),
            ),
        )


def _read(kind: str, definition: str, state: str, progress: str | None) -> tuple[Machine | None, str | None]:
    """A stored machine, or why it cannot be read: that is the trouble of one transaction, not of its partition."""
    if progress is None:
        return None, None
    try:
        return machine_from_json(kind, orjson.loads(definition), state, orjson.loads(progress)), None
    except Exception as error:
        log.error("unreadable", kind=kind, state=state, error=traceback.format_exc())
        return None, f"the stored {kind} cannot be read: {describe(error)}"


def _json(value: object) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _state(entry: Entry) -> str:
    return "STARTED" if entry.machine is None else entry.machine.state


def _progress(entry: Entry) -> str | None:
    return None if entry.machine is None else _json(progress_to_json(entry.machine))


def _attention(entry: Entry) -> bool:
    return entry.parked or (entry.machine is not None and entry.machine.needs_attention)


def _services(entry: Entry) -> str:
    """An array literal within the array: unnest would flatten an array of arrays."""
    entry.stored_participants = _participants(entry.machine)
    return text_array(services_of(entry.kind, entry.machine, entry.definition or {}))


def _changed_services(entry: Entry) -> str | None:
    """As :func:`_services`; ``None``: as they are stored. Participants are added, never taken away."""
    return None if _participants(entry.machine) == entry.stored_participants else _services(entry)


def _participants(machine: Machine | None) -> int:
    return len(machine.participants) if isinstance(machine, Transaction) else 0


def _deadline(entry: Entry) -> datetime | None:
    due = None if entry.machine is None or entry.parked else entry.machine.next_deadline
    return None if due is None else from_ms(due)
