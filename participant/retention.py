"""How long rows are kept, and how old ones go: gently, in small pieces, and never one that may still be needed.

What has to outlive what
------------------------

``fluxora.outbox``: a row is needed until Debezium has taken it, and then for ``fluxora audit``, which compares it with
its topic and can publish it again. So it goes when it is older than ``outbox_days`` **and** the slot has confirmed the
log beyond it. A database whose slot is missing, or has lost its log, keeps all rows: they may be the only copies.

``fluxora.inbox`` and ``fluxora.barrier``, rows of commands: they drop a second copy of a command, refuse an action that
comes after its compensation, and tell a compensation whether there is something to undo. The last is needed as long as
the saga runs, and nothing limits that: a compensation is tried until it succeeds. So **age proves nothing; the
coordinator must say that the transaction has ended**. From then on its machine sends no command. The copies there are
stay readable in the command topic as long as that keeps them: its ``retention.ms`` (30 days as ``fluxora init`` makes
it) and one segment, because Kafka removes whole segments (``segment.ms``, 7 days). A group that is reset, a restored
offset, ``fluxora replay`` and a dead letter that is sent again all read from there, and the last two may put a copy at
the topic's end, where it stays as long once more: 74 days in all. (``replay`` makes no copies of copies.) So these
rows go ``commands_days`` (90) after the end; whoever lengthens the retention of those topics lengthens this first, to
twice that and more. A transaction that the coordinator does not know, its database being lost or another one, keeps
its rows.

``fluxora.inbox``, rows of consumed events: they drop second copies, also when a whole group is reset to the beginning
of its topics. They go after ``events_days`` (90), which must be longer than those topics keep their records, by the
same reckoning; for topics that are kept for ever, set it to 0: never.

``fluxora.prepared`` is the participant's own affair (``participant.sweep``).

How
---

No index is made for it: one more index entry with every row would cost the hot path all day for what is done once. A
table is walked by its pages instead (PostgreSQL's TID range scan, 14 and later), a few pages a statement, some thousand
pages a round, so that each page is looked at once a day, however large the table is. What a walk has reached is kept in
memory; it begins at a random place, so that a process that is restarted all the time still comes everywhere.

Each statement is a transaction of its own; a crash leaves what was deleted deleted. One process at a time prunes a
database: it holds an advisory lock of its session.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from participant.settings import CONNECT

Connection = psycopg.Connection[TupleRow]

#: Of those transactions, the ones that have ended before a time, for certain.
Ended = Callable[[Sequence[UUID], datetime], set[UUID]]

#: First half of the session's advisory lock: two 32-bit keys, so that it meets no other lock of ours.
_LOCK = int.from_bytes(b"prun")
#: Rows deleted by one statement where they are named by their ids.
_IDS = 1_000
#: Rows of one outbox that may wait for the slot's confirmation.
_WAITING = 100_000
#: Days that an ended transaction is kept at least: what is younger is never looked for among the pruned ones.
_SHORTEST_DAYS = 0.1
#: A command's id begins with its transaction's.
_OF_TRANSACTION = "command_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}:'"
#: Keys of consumed events (participant.subscriptions).
_OF_EVENT = "(command_id LIKE 'event|%%' OR command_id LIKE 'record|%%' OR command_id LIKE 'sha256|%%')"


class RetentionSettings(BaseSettings):
    """In the environment ``FLUXORA_PRUNE_<NAME>``. Days may be fractions; 0 keeps for ever."""

    model_config = SettingsConfigDict(env_prefix="FLUXORA_PRUNE_", extra="ignore")

    enabled: bool = Field(default=True, description="False: nothing is pruned but by hand.")
    outbox_days: float = Field(default=7.0, ge=0, le=3650, description="Rows of outboxes, for fluxora audit.")
    commands_days: float = Field(
        default=90.0, ge=0, le=3650, description="Inbox and barrier rows, after their transaction's end."
    )
    events_days: float = Field(default=90.0, ge=0, le=3650, description="Inbox rows of consumed events.")
    transactions_days: float = Field(
        default=30.0, ge=0, le=3650, description="Ended transactions and their journal, after their end."
    )
    remembered_days: float = Field(
        default=400.0, ge=0, le=3650, description="That a pruned transaction was there and how it ended; after its end."
    )
    keys_days: float = Field(default=7.0, ge=0, le=3650, description="Idempotency keys of creating calls.")

    interval_seconds: float = Field(default=60.0, ge=0.1, le=86_400, description="Pause between two rounds.")
    cycle_hours: float = Field(
        default=24.0, ge=0.01, le=24 * 365, description="Every page of every table is looked at once in this time."
    )
    pages: int = Field(default=32, ge=1, le=10_000, description="Pages (8 KiB) of one statement.")
    round_pages: int = Field(
        default=4_096, ge=1, le=10_000_000, description="Pages of a table in one round; more if the cycle needs it."
    )
    pause_seconds: float = Field(default=0.02, ge=0, le=60, description="Pause between two statements.")

    @model_validator(mode="after")
    def _ends_are_remembered(self) -> Self:
        if 0 < self.transactions_days < _SHORTEST_DAYS:
            raise ValueError(
                f"FLUXORA_PRUNE_TRANSACTIONS_DAYS is {self.transactions_days:g}: it must be at least "
                f"{_SHORTEST_DAYS:g}, or 0 for never"
            )
        for name in ("commands_days", "transactions_days"):
            other = getattr(self, name)
            if self.remembered_days and (other == 0 or self.remembered_days <= other):
                raise ValueError(
                    f"FLUXORA_PRUNE_REMEMBERED_DAYS is {self.remembered_days:g}: it must be more than "
                    f"FLUXORA_PRUNE_{name.upper()} ({other:g}), or services could no longer learn that a transaction "
                    "has ended"
                )
        return self


class Walk:
    """A table's pages, some at a time."""

    def __init__(self, table: str, settings: RetentionSettings) -> None:
        self._table = table
        self._settings = settings
        self._share = random.random()
        self._next: int | None = None

    def windows(self, connection: Connection, whole: bool) -> Iterator[tuple[str, str]]:
        """Yield the next round's pieces as pairs of tids, the second one excluded; ``whole``: the whole table's."""
        settings = self._settings
        total = pages_of(connection, self._table)
        if not total:
            return
        if whole:
            at, count = 0, total
        else:
            at = int(self._share * total) if self._next is None else self._next % total
            share = settings.interval_seconds / (settings.cycle_hours * 3600)
            count = min(total, max(settings.round_pages, ceil(total * share)))
        while count > 0:
            end = min(total, at + min(count, settings.pages))
            yield f"({at},0)", f"({end},0)"
            count -= end - at
            at = self._next = end % total
            if count > 0:
                time.sleep(settings.pause_seconds)


def pages_of(connection: Connection, table: str) -> int:
    """Pages of a table, without its TOAST."""
    row = connection.execute(
        "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int", (table,)
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def alone(url: str, application: str, tables: str, patience_s: float = 0.0) -> Iterator[Connection | None]:
    """Connect for pruning; ``None`` if another process still prunes these ``tables`` of the database after
    ``patience_s``.

    Raises:
        psycopg.Error: the database does not answer.
    """
    with psycopg.connect(
        url,
        autocommit=True,
        application_name=application,
        **CONNECT,
        # A delete that is lost in a crash is done again; a lock or a statement that takes long is given up.
        options="-c synchronous_commit=off -c lock_timeout=2000 -c statement_timeout=60000",
    ) as connection:
        until = time.monotonic() + patience_s
        while not (taken := _try_lock(connection, tables)) and time.monotonic() < until:
            time.sleep(0.2)
        try:
            yield connection if taken else None
        finally:
            if taken:
                # Its backend would let go of it only some time after the connection is closed.
                with suppress(psycopg.Error):
                    connection.execute("SELECT pg_advisory_unlock_all()")


def _try_lock(connection: Connection, tables: str) -> bool:
    row = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LOCK, tables)).fetchone()
    return row is not None and bool(row[0])


class ServiceTables:
    """Prunes the schema ``fluxora`` of one database, round by round."""

    def __init__(self, settings: RetentionSettings, slot: str) -> None:
        """``slot``: the replication slot of the database's outbox."""
        self._settings = settings
        self._slot = slot
        self._outbox = Walk("fluxora.outbox", settings)
        self._inbox = Walk("fluxora.inbox", settings)
        self._barrier = Walk("fluxora.barrier", settings)
        #: Old rows, and a position of the log that all of them stand before.
        self._waiting: tuple[list[UUID], str] | None = None
        self._held_outbox: str | None = None
        self._held_commands: str | None = None

    @property
    def kept(self) -> list[str]:
        """Why rows are kept that are old enough, in words."""
        return [reason for reason in (self._held_outbox, self._held_commands) if reason is not None]

    def prune(
        self, connection: Connection, ended: Ended | None, *, whole: bool = False, dry: bool = False
    ) -> Counter[str]:
        """One round, of some pages or of the ``whole`` tables; ``dry``: delete nothing. Returns rows by table.

        Rows of the outbox are noted in one round, and deleted in a later one when the slot has confirmed them; who
        makes a single round calls ``delete_confirmed`` after it.

        ``ended`` asks the coordinator's database; ``None``: it is not there, so rows of commands stay.
        """
        done: Counter[str] = Counter()
        if self._settings.outbox_days:
            deleted = self.delete_confirmed(connection)
            done["outbox"] += deleted or 0
            if deleted is not None:
                noted = self._note_old_rows(connection, whole)
                if dry:
                    done["outbox"] += noted
                    self._waiting = None
        self._held_commands = None
        if ended is None and self._settings.commands_days:
            self._held_commands = "inbox and barrier: the coordinator's database does not say which transactions ended"
        now = now_of(connection)
        for window in self._inbox.windows(connection, whole):
            done["inbox"] += self._prune_inbox(connection, ended, now, window, dry)
        if ended is not None and self._settings.commands_days:
            before = now - timedelta(days=self._settings.commands_days)
            for window in self._barrier.windows(connection, whole):
                done["barrier"] += _prune_ended(connection, ended, _BARRIER, before, window, dry)
        return +done

    def _prune_inbox(
        self, connection: Connection, ended: Ended | None, now: datetime, window: tuple[str, str], dry: bool
    ) -> int:
        done = 0
        if self._settings.events_days:
            before = now - timedelta(days=self._settings.events_days)
            done += take(connection, "fluxora.inbox", f"handled_at < %s AND {_OF_EVENT}", (before,), window, dry)
        if ended is not None and self._settings.commands_days:
            before = now - timedelta(days=self._settings.commands_days)
            done += _prune_ended(connection, ended, _INBOX, before, window, dry)
        return done

    def _note_old_rows(self, connection: Connection, whole: bool) -> int:
        """Note which rows of the outbox are old, then the log's position; returns how many.

        Whatever is noted was committed before that position, so once the slot has confirmed it, it is in Kafka. (Its
        age alone would not say so: ``created_at`` is when its transaction began.)
        """
        ids: list[UUID] = []
        before = now_of(connection) - timedelta(days=self._settings.outbox_days)
        for window in self._outbox.windows(connection, whole):
            ids += [
                row[0]
                for row in connection.execute(
                    "SELECT id FROM fluxora.outbox WHERE ctid >= %s::tid AND ctid < %s::tid AND created_at < %s",
                    (*window, before),
                )
            ]
            if len(ids) >= _WAITING and not whole:
                break
        # Not pg_current_wal_lsn(): a commit without synchronous_commit is visible before it is written.
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        self._waiting = (ids, row[0]) if ids else None
        return len(ids)

    def delete_confirmed(self, connection: Connection) -> int | None:
        """Delete the noted rows of the outbox if the slot has confirmed them; ``None``: not so, ``kept`` says why."""
        self._held_outbox = None
        if self._waiting is None:
            return 0
        ids, position = self._waiting
        row = connection.execute(
            "SELECT wal_status = 'lost', confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots "
            "WHERE slot_name = %s AND database = current_database()",
            (position, self._slot),
        ).fetchone()
        if row is None or row[0]:
            self._held_outbox = f"outbox: the slot {self._slot} {'has lost its log' if row else 'is missing'}"
            return None
        if not row[1]:
            self._held_outbox = f"outbox: {len(ids)} old rows wait until the slot {self._slot} has confirmed {position}"
            return None
        self._waiting = None
        deleted = 0
        for i in range(0, len(ids), _IDS):
            if i:
                time.sleep(self._settings.pause_seconds)
            deleted += connection.execute(
                "DELETE FROM fluxora.outbox WHERE id = ANY(%s)", (ids[i : i + _IDS],)
            ).rowcount
        return deleted


@dataclass(frozen=True, slots=True)
class _OfTransactions:
    """A table whose rows go with their transactions."""

    table: str
    at: str
    transaction: str
    condition: str = "true"


_INBOX = _OfTransactions(
    "fluxora.inbox",
    "handled_at",
    # CASE, because AND has no order: a key that is no UUID must not be cast.
    f"CASE WHEN {_OF_TRANSACTION} THEN left(command_id, 36)::uuid END",
    _OF_TRANSACTION,
)
_BARRIER = _OfTransactions("fluxora.barrier", "created_at", "transaction_id")


def _prune_ended(
    connection: Connection, ended: Ended, of: _OfTransactions, before: datetime, window: tuple[str, str], dry: bool
) -> int:
    """Delete the rows of a window that are old, and whose transactions ended ``before``, for certain."""
    old = f"{of.at} < %s AND {of.condition}"
    found = connection.execute(
        f"SELECT DISTINCT {of.transaction} FROM {of.table} WHERE ctid >= %s::tid AND ctid < %s::tid AND {old}",
        (*window, before),
    )
    ids = [row[0] for row in found]
    over = ended(ids, before) if ids else set()
    if not over:
        return 0
    return take(connection, of.table, f"{old} AND {of.transaction} = ANY(%s)", (before, list(over)), window, dry)


def take(
    connection: Connection, table: str, condition: str, values: Sequence[Any], window: tuple[str, str], dry: bool
) -> int:
    """Delete, or count, the rows of a window."""
    where = f"FROM {table} WHERE ctid >= %s::tid AND ctid < %s::tid AND {condition}"
    if not dry:
        return connection.execute(f"DELETE {where}", (*window, *values)).rowcount
    row = connection.execute(f"SELECT count(*) {where}", (*window, *values)).fetchone()
    assert row is not None
    return int(row[0])


def now_of(connection: Connection) -> datetime:
    """The database's clock, which the rows' times are of."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    now: datetime = row[0]
    return now
