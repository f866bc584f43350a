"""Two-phase commit on resources: what was promised is kept in this database until it is told to happen, or not to.

Between prepare and commit nothing of the change is visible: others read the old values. The resource is held against
other transactions of Fluxora, by the primary key of ``fluxora.held``, and not against anybody who writes to it
directly; who does asks ``held`` first, or uses ``participant.prepared``, which holds PostgreSQL's own locks.

What a crash leaves on each line of a call on the manager's own connection::

    1  begin, the row of the transaction is written or locked     nothing
    2  resources are held, the change is rehearsed or applied     nothing: PostgreSQL rolls back
    3  commit                                                     all of it, or nothing; the caller does not know
                                                                  which, asks again, and gets the stored answer
    4  the answer is given                                        the same

So recovery needs no code of its own: the table is the state, and each call is idempotent.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Table, create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError, StatementError

from participant.arrays import text_array
from participant.changes import (
    CannotApply,
    Change,
    Resource,
    changes_from,
    decode,
    encode,
    operations_of,
    table_resource,
)
from participant.command import Refused
from participant.crashpoint import crash_at
from participant.handlers import InvalidService
from participant.settings import sqlalchemy_url
from participant.two_phase import (
    YES,
    InvalidChange,
    State,
    StillBusy,
    TransactionEnded,
    Undecided,
    UnknownTransaction,
    Vote,
    checked_id,
    is_contention,
    no,
    refusal,
)

#: Makes operations out of a payload of the service's own form.
PayloadReader = Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]]

# A promise must survive a crash of PostgreSQL, whatever the database's default. A process that is frozen inside its
# transaction (SIGSTOP) must not hold the row for ever.
_DURABLE = text("""
    SELECT set_config('lock_timeout', :wait, true), set_config('idle_in_transaction_session_timeout', '10s', true),
        CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END
""")
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :wait, true)")
#: Returns what it was. OFFSET keeps the planner from reading it after the change.
_CHANGE_LOCK_TIMEOUT = text("""
    SELECT before, set_config('lock_timeout', :wait, true)
    FROM (SELECT current_setting('lock_timeout') AS before OFFSET 0) AS settings
""")

_ENTER = text("""
    INSERT INTO fluxora.prepared (service, transaction_id, state, changes, ended_at)
    VALUES (:service, :id, :state, CAST(:changes AS json), CASE WHEN :state <> 'PREPARED' THEN clock_timestamp() END)
    ON CONFLICT DO NOTHING RETURNING 1
""")
_LOCK = text("""
    SELECT state, CAST(changes AS text), reason FROM fluxora.prepared
    WHERE service = :service AND transaction_id = :id FOR UPDATE
""")
_PROMISE = text("""
    UPDATE fluxora.prepared SET changes = CAST(:changes AS json) WHERE service = :service AND transaction_id = :id
""")
#: What it held is let go.
_END = text("""
    WITH held AS (DELETE FROM fluxora.held WHERE service = :service AND transaction_id = :id)
    UPDATE fluxora.prepared SET state = :state, ended_at = clock_timestamp()
    WHERE service = :service AND transaction_id = :id
""")
#: As _END, of a prepare that nothing came of.
_REFUSE = text("""
    UPDATE fluxora.prepared SET state = 'ABORTED', changes = '[]', reason = :reason, ended_at = clock_timestamp()
    WHERE service = :service AND transaction_id = :id
""")
# Sorted, so that two transactions take what they have in common in the same order.
_HOLD = text("""
    INSERT INTO fluxora.held (service, resource, resource_id, transaction_id)
    SELECT :service, resource, resource_id, :id
    FROM unnest(CAST(:resources AS text[]), CAST(:resource_ids AS text[])) AS wanted(resource, resource_id)
    ORDER BY resource COLLATE "C", resource_id COLLATE "C"
    ON CONFLICT DO NOTHING
""")
_HOLDERS = text("""
    SELECT h.resource, h.resource_id, h.transaction_id
    FROM unnest(CAST(:resources AS text[]), CAST(:resource_ids AS text[])) AS wanted(resource, resource_id)
    JOIN fluxora.held h ON h.service = :service AND h.resource = wanted.resource COLLATE "C"
        AND h.resource_id = wanted.resource_id COLLATE "C"
    ORDER BY h.transaction_id = :id, h.resource, h.resource_id
""")
_UNDECIDED = text("""
    SELECT transaction_id, EXTRACT(EPOCH FROM clock_timestamp() - prepared_at) FROM fluxora.prepared
    WHERE service = :service AND state = 'PREPARED'
        AND prepared_at <= clock_timestamp() - make_interval(secs => :seconds)
    ORDER BY random() LIMIT :limit
""")
_FORGET = text("""
    DELETE FROM fluxora.prepared WHERE (service, transaction_id) IN (
        SELECT service, transaction_id FROM fluxora.prepared
        WHERE service = :service AND state <> 'PREPARED'
            AND ended_at < clock_timestamp() - make_interval(secs => :seconds)
        LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def default_service() -> str:
    """The name under which rows are kept when none is given: ``FLUXORA_SERVICE``, or ``fluxora``."""
    return os.environ.get("FLUXORA_SERVICE", "fluxora")


def forget_ended(connection: Connection, service: str, older_than_s: float, limit: int) -> int:
    """Delete rows of transactions that ended so long ago, at most ``limit``; returns how many."""
    done = connection.execute(_FORGET, {"service": service, "seconds": older_than_s, "limit": limit})
    return done.rowcount


class _No(Exception):
    """The vote is no: what this prepare has written goes."""


@dataclass(frozen=True, slots=True)
class _Row:
    state: State
    changes: list[Change]
    reason: str | None


class ResourceManager:
    """Prepares, commits and aborts changes of a service's resources. Safe for use by many threads and processes.

    Each call is one local transaction: on a connection of its own, committed when it returns, or, with
    ``connection``, inside the caller's transaction (READ COMMITTED), which is never committed here.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        service: str | None = None,
        tables: Mapping[str, Table] | None = None,
        operations: PayloadReader = operations_of,
        lock_wait_s: float = 2.0,
    ) -> None:
        """
        Args:
            engine: of the service's own database; made from ``DATABASE_URL`` when it is first needed by default.
            service: name under which promises and held resources are kept. Services that share *tables* must
                share it, or they do not see what the other holds; by default ``FLUXORA_SERVICE``, or ``fluxora``.
            tables: resources by name that are rows of a table; see ``resource`` for any other.
            operations: makes ``[{resource, resource_id, operation, data}]`` of a payload in a form of its own.
            lock_wait_s: longest wait for a lock of somebody who is at work at the same moment; then the vote is no.
        """
        if lock_wait_s <= 0:
            raise InvalidService("lock_wait_s must be over 0: PostgreSQL takes 0 for no limit")
        self.service = service or default_service()
        self._given = engine
        self._operations = operations
        self._wait = f"{max(1, int(lock_wait_s * 1000))}ms"
        self._resources: dict[str, Resource] = {}
        for name, table in (tables or {}).items():
            self._register(name, table_resource(table))

    def resource(
        self,
        name: str,
        *,
        apply: Callable[[Connection, Change], object],
        validate: Callable[[Connection, Change], Refused | None] | None = None,
        reserve: Callable[[Connection, Change], Refused | None] | None = None,
        release: Callable[[Connection, Change], object] | None = None,
        holds: Callable[[Connection, Change], Iterable[tuple[str, str]]] | None = None,
        rehearse: bool = True,
    ) -> None:
        """Register a kind of resource by what to do with it; ``participant.changes.Resource`` says when each runs."""
        self._register(name, Resource(apply, validate, reserve, release, holds, rehearse=rehearse))

    # The protocol

    def prepare(
        self,
        transaction_id: str | UUID,
        resource_id: str | int | UUID,
        operation: str,
        data: Any = None,
        *,
        resource: str | None = None,
        connection: Connection | None = None,
    ) -> Vote:
        """Promise one change. Several calls add up, one for a resource; the same call again gets the same answer.

        A no to the first call of a transaction is final: a prepare of it that comes later is refused. After a yes,
        a no to a further one leaves what was promised as it is; the transaction is then to be aborted.

        Returns:
            the vote: no if the resource is held by another transaction or the change cannot be made.

        Raises:
            InvalidChange: unknown resource, operation or column, or a limit is broken.
            StillBusy: another call of the transaction is in progress.
        """
        one = {"resource": resource, "resource_id": resource_id, "operation": operation, "data": data}
        return self.prepare_all(transaction_id, [one], connection=connection)

    def prepare_payload(
        self, transaction_id: str, payload: Mapping[str, Any], *, connection: Connection | None = None
    ) -> Vote:
        """Promise what a payload describes: one operation or ``{"operations": […]}``, all of it or nothing."""
        if not isinstance(payload, Mapping):
            raise InvalidChange("payload", "must be a JSON object")
        return self.prepare_all(transaction_id, self._operations(payload), connection=connection)

    def prepare_all(
        self,
        transaction_id: str | UUID,
        operations: Iterable[Mapping[str, Any]],
        *,
        connection: Connection | None = None,
    ) -> Vote:
        """Promise several changes, all of them or nothing; they are applied in this order. As ``prepare``."""
        id = checked_id(transaction_id)
        changes = changes_from(id, operations, self._resources)
        # Not a no: the call that is in the way may be a copy of this one, and come to a yes.
        with _busy(id), self._transaction(connection, "prepare") as own:
            return self._prepare(own, id, changes)

    def commit(self, transaction_id: str | UUID, *, connection: Connection | None = None) -> None:
        """Apply what was prepared. Again: does nothing.

        Raises:
            UnknownTransaction: it was never prepared here.
            TransactionEnded: it was aborted here.
            StillBusy: another call of it, or somebody's lock on a row, was in the way for too long.
            CannotApply, IntegrityError: somebody has changed a held resource without asking Fluxora. Nothing was
                applied, the promise stands, and commit can be tried again.
        """
        id = checked_id(transaction_id)
        with _busy(id), self._transaction(connection, "commit") as own:
            row = self._lock(own, id)
            if row is None:
                raise UnknownTransaction(id)
            if row.state is State.ABORTED:
                raise TransactionEnded(id, row.state, "commit")
            if row.state is State.PREPARED:
                for change in row.changes:
                    _apply(self._resource_of(change), own, change)
                self._end(own, id, State.COMMITTED)

    def abort(self, transaction_id: str | UUID, *, connection: Connection | None = None) -> None:
        """Let go of what was prepared; when nothing was, see to it that nothing will be. Again: does nothing.

        Raises:
            TransactionEnded: it was committed here.
            StillBusy: another call of it is in progress.
        """
        id = checked_id(transaction_id)
        with _busy(id), self._transaction(connection, "abort") as own:
            if self._enter(own, id, State.ABORTED):
                return
            row = self._lock(own, id)
            if row is None:
                raise StillBusy(id)  # pruned between the two statements
            if row.state is State.COMMITTED:
                raise TransactionEnded(id, row.state, "abort")
            if row.state is State.PREPARED:
                for change in reversed(row.changes):
                    if (release := self._resource_of(change).release) is not None:
                        release(own, change)
                self._end(own, id, State.ABORTED)

    # For the service, the sweep and the operator

    def held(self, connection: Connection, resource_id: str | int | UUID, *, resource: str | None = None) -> str | None:
        """Return the transaction that holds the resource now, or None.

        To keep it so until the end of one's own transaction, lock the resource's row first: prepare then waits
        ``lock_wait_s`` at most, and is refused.
        """
        name = resource or next(iter(self._resources), "")
        keys = {"resources": text_array([name]), "resource_ids": text_array([str(resource_id)])}
        found = connection.execute(_HOLDERS, {"service": self.service, "id": "", **keys}).first()
        return None if found is None else str(found[2])

    def undecided(self, older_than_s: float, limit: int) -> Sequence[Undecided]:
        """Transactions promised for at least so long, at most ``limit``, in random order (so none is starved)."""
        with self._engine.begin() as connection:
            rows = connection.execute(
                _UNDECIDED, {"service": self.service, "seconds": older_than_s, "limit": limit}
            ).all()
        return [Undecided(id, float(age)) for id, age in rows]

    def forget(self, older_than_s: float, limit: int = 10_000) -> int:
        """Forget transactions that ended so long ago, at most ``limit``; returns how many.

        A commit that is asked for after that gets UnknownTransaction, so the time must be longer than any
        coordinator's outage: days.
        """
        with self._engine.begin() as connection:
            return forget_ended(connection, self.service, older_than_s, limit)

    # How

    def _prepare(self, connection: Connection, id: str, changes: Sequence[Change]) -> Vote:
        new = self._enter(connection, id, State.PREPARED, changes)
        row = _Row(State.PREPARED, [], None) if new else self._lock(connection, id)
        if row is None:
            return no("the transaction ended here long ago")
        if row.state is State.ABORTED:
            return no(row.reason or "the transaction was aborted here before")
        known = {(change.resource, change.resource_id): change for change in row.changes}
        added = [change for change in changes if known.get((change.resource, change.resource_id)) != change]
        if not added and not new:
            return YES
        if row.state is State.COMMITTED:
            return no("the transaction is committed here and takes nothing more")
        try:
            with connection.begin_nested():
                self._promise(connection, id, row.changes, added)
                if not new:
                    connection.execute(_PROMISE, {**self._key(id), "changes": encode([*row.changes, *added])})
        except (_No, DBAPIError, StatementError) as error:
            reason = _reason(error)
            if reason is None:
                raise
            if new:
                # Final, so that a second copy of this call cannot take hold of anything later. What was promised
                # by an earlier call stays: only the coordinator may take that back.
                connection.execute(_REFUSE, {**self._key(id), "reason": reason})
            return no(reason)
        return YES

    def _promise(self, connection: Connection, id: str, known: Sequence[Change], added: Sequence[Change]) -> None:
        """Hold, check and rehearse ``added``; raises _No, or the database's error, if that cannot be."""
        for change in added:
            if any((one.resource, one.resource_id) == (change.resource, change.resource_id) for one in known):
                raise _No(
                    f"{change.resource} {change.resource_id} is prepared by this transaction with another content"
                )
        self._hold(connection, id, [(change.resource, change.resource_id) for change in added])
        further: list[tuple[str, str]] = []
        for change in added:
            resource = self._resource_of(change)
            if resource.holds is not None:
                further += resource.holds(connection, change)
        self._hold(connection, id, further)
        for change in added:
            if (validate := self._resource_of(change).validate) is not None:
                with _rolled_back(connection):
                    _check(validate(connection, change))
        for change in added:
            if (reserve := self._resource_of(change).reserve) is not None:
                _check(reserve(connection, change))
        with _rolled_back(connection):
            for change in [*known, *added]:
                if (resource := self._resource_of(change)).rehearse:
                    try:
                        _apply(resource, connection, change)
                    except CannotApply as error:
                        raise _No(str(error)) from error
            # Deferred constraints would speak up only at the commit.
            connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))

    def _hold(self, connection: Connection, id: str, wanted: Sequence[tuple[str, str]]) -> None:
        if not wanted:
            return
        keys = {
            **self._key(id),
            "resources": text_array(resource for resource, _ in wanted),
            "resource_ids": text_array(resource_id for _, resource_id in wanted),
        }
        if connection.execute(_HOLD, keys).rowcount == len(wanted):
            return
        holder = connection.execute(_HOLDERS, keys).first()
        if holder is None:
            raise _No("a resource was held by another transaction a moment ago")
        resource, resource_id, transaction_id = holder
        by = "this transaction already" if transaction_id == id else f"the transaction {transaction_id}"
        raise _No(f"{resource} {resource_id} is held by {by}")

    def _enter(self, connection: Connection, id: str, state: State, changes: Sequence[Change] = ()) -> bool:
        """Write the transaction's first row; False if there is one. Waits for whoever is writing it now."""
        row = {**self._key(id), "state": state.value, "changes": encode(changes)}
        return connection.execute(_ENTER, row).first() is not None

    def _lock(self, connection: Connection, id: str) -> _Row | None:
        found = connection.execute(_LOCK, self._key(id)).first()
        return None if found is None else _Row(State(found[0]), decode(id, found[1]), found[2])

    def _end(self, connection: Connection, id: str, state: State) -> None:
        connection.execute(_END, {**self._key(id), "state": state.value})

    def _key(self, id: str) -> dict[str, str]:
        return {"service": self.service, "id": id}

    def _register(self, name: str, resource: Resource) -> None:
        if not name or name in self._resources:
            raise InvalidService(f"a resource needs a name of its own; {name!r} is empty or registered already")
        self._resources[name] = resource

    def _resource_of(self, change: Change) -> Resource:
        resource = self._resources.get(change.resource)
        if resource is None:
            raise InvalidChange("resource", f"{change.resource!r} is not registered here any more; register it again")
        return resource

    @cached_property
    def _engine(self) -> Engine:
        engine = self._given
        if engine is None:
            url = os.environ.get("DATABASE_URL")
            if not url:
                raise InvalidService("ResourceManager has no engine: give it one, or set DATABASE_URL")
            engine = create_engine(sqlalchemy_url(url), pool_size=5)
        # The row locks below see what others commit while we wait for them; a snapshot would not.
        return engine.execution_options(isolation_level="READ COMMITTED")

    @contextmanager
    def _transaction(self, connection: Connection | None, name: str) -> Iterator[Connection]:
        if connection is None:
            with self._engine.begin() as own:
                own.execute(_DURABLE, {"wait": self._wait})
                yield own
                crash_at(f"participant.{name}.before_commit")
            crash_at(f"participant.{name}.after_commit")
            return
        # An error inside must not cost the caller its transaction; rolled back, it takes the setting back too.
        with connection.begin_nested():
            before = connection.execute(_CHANGE_LOCK_TIMEOUT, {"wait": self._wait}).scalar_one()
            yield connection
            connection.execute(_SET_LOCK_TIMEOUT, {"wait": before})


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """What is done inside leaves nothing, whether it raises or not."""
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


@contextmanager
def _busy(id: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if is_contention(error):
            raise StillBusy(id) from error
        raise


def _apply(resource: Resource, connection: Connection, change: Change) -> None:
    answer = resource.apply(connection, change)
    if isinstance(answer, Refused):
        raise CannotApply(answer.reason)


def _check(answer: Refused | None) -> None:
    if isinstance(answer, Refused):
        raise _No(answer.reason)


def _reason(error: Exception) -> str | None:
    """Why the vote is no; None if the error is not about the change."""
    if isinstance(error, _No):
        return str(error)
    if isinstance(error, DBAPIError):
        # psycopg itself refuses a value that no column could take, and has no SQLSTATE for that.
        unadaptable = isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None) is None
        return str(error.orig) if unadaptable else refusal(error)
    return str(error.orig) if isinstance(error, StatementError) else None
