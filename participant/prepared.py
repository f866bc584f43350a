"""Two-phase commit on PostgreSQL's own PREPARE TRANSACTION: any SQL, held by the database's own locks.

The first statement of every prepared transaction writes its row of ``fluxora.prepared`` as COMMITTED. Nobody sees the
row before COMMIT PREPARED, and with ROLLBACK PREPARED it is gone; so it tells for ever after what became of the
transaction, and its primary key keeps the calls of one transaction apart:

- while the prepared transaction lives, an abort cannot write its tombstone (it would wait for the row), so it rolls
  back first and writes then;
- once the tombstone is there, a prepare that comes late fails at its first statement.

What a crash leaves on each line of prepare::

    1  begin, the row, the service's work     nothing: PostgreSQL rolls back
    2  PREPARE TRANSACTION                    the prepared transaction with its locks, or nothing; asked again, the
                                              answer is found in pg_prepared_xacts
    3  the answer is given                    the prepared transaction; the sweep asks the coordinator about it

PostgreSQL keeps a prepared transaction through its own crashes. It keeps its row locks too, and VACUUM cannot remove
any row that died since: one that is forgotten stops the database in the end, so run the sweep (``participant.sweep``)
and watch ``pg_prepared_xacts``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from participant.command import Refused
from participant.crashpoint import crash_at
from participant.handlers import InvalidService
from participant.resources import default_service, forget_ended
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

#: Marks a prepared transaction as ours ("FLX1"); XA's format id.
FORMAT_ID = 0x464C5831
#: Characters of a service's name: the limit of an XA branch qualifier (psycopg ``Xid.bqual``).
SERVICE_LIMIT = 64
#: Seconds between two looks at a prepared transaction that another session is just ending.
_PAUSE_S = 0.02

#: The work of a transaction; returns Refused, or raises, to vote no.
Work = Callable[[Connection], Refused | None]
#: The same, for payloads that come over HTTP or Kafka.
PayloadWork = Callable[[Connection, Mapping[str, Any]], Refused | None]

_LIMITS = text("""
    SELECT set_config('lock_timeout', :wait, true), set_config('idle_in_transaction_session_timeout', '10s', true),
        CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END
""")
_ENTER = text("""
    INSERT INTO fluxora.prepared (service, transaction_id, state, reason, ended_at)
    VALUES (:service, :id, :state, :reason, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING 1
""")
_STATE = text("SELECT state, reason FROM fluxora.prepared WHERE service = :service AND transaction_id = :id")
_IS_PREPARED = text("SELECT 1 FROM pg_prepared_xacts WHERE gid = :gid AND database = current_database()")
_UNDECIDED = text("""
    SELECT gid, EXTRACT(EPOCH FROM clock_timestamp() - prepared) FROM pg_prepared_xacts
    WHERE database = current_database() AND starts_with(gid, :prefix)
        AND prepared <= clock_timestamp() - make_interval(secs => :seconds)
    ORDER BY random()
""")


class PreparedTransactionManager:
    """Prepares, commits and aborts transactions of arbitrary SQL. Safe for use by many threads and processes.

    PREPARE TRANSACTION ends the session's transaction, so every call has connections of its own; a ``connection``
    that is given to fit ``participant.two_phase.Participant`` is left alone. Work that waits for rows which that
    connection has locked votes no after ``lock_wait_s``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        service: str | None = None,
        work: PayloadWork | None = None,
        lock_wait_s: float = 2.0,
    ) -> None:
        """
        Args:
            engine: of the service's own database, with psycopg 3; ``max_prepared_transactions`` must be over 0.
            service: part of the prepared transactions' names; by default ``FLUXORA_SERVICE``, or ``fluxora``.
            work: does what a payload asks for, for endpoints and Kafka.
            lock_wait_s: longest wait for a lock, of the work and of the calls themselves.
        """
        if lock_wait_s <= 0:
            raise InvalidService("lock_wait_s must be over 0: PostgreSQL takes 0 for no limit")
        self.service = service or default_service()
        if len(self.service) > SERVICE_LIMIT or not (self.service.isascii() and self.service.isprintable()):
            raise InvalidService(f"service must be at most {SERVICE_LIMIT} printable ASCII characters")
        if engine.dialect.driver != "psycopg":
            raise InvalidService(f"the engine must use psycopg 3 (postgresql+psycopg://), not {engine.dialect.driver}")
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._work = work
        self._lock_wait_s = lock_wait_s

    def prepare(self, transaction_id: str | UUID, work: Work) -> Vote:
        """Do ``work`` in a transaction and prepare that; again: yes without doing it again.

        The content of a repeated call cannot be compared with the first one's.

        Returns:
            the vote: no if the work returns Refused or breaks a constraint, or the transaction was aborted before.
            A no is remembered, so that a second copy of the call cannot prepare anything later.

        Raises:
            InvalidService: ``max_prepared_transactions`` is 0.
            StillBusy: another call of the transaction is preparing at this moment.
            Exception: what ``work`` raises, if it is not the database's refusal; nothing is held then.
        """
        id = checked_id(transaction_id)
        with self._engine.begin() as connection:
            if self._is_prepared(connection, id):
                return YES
        try:
            vote = self._attempt(id, work)
        except DBAPIError as error:
            reason = refusal(error)
            if reason is None:
                raise _explained(error) from error
            vote = no(reason)
        if not vote:
            if self._settled(id):
                return YES
            self._remember_no(id, vote)
        return vote

    def prepare_payload(
        self, transaction_id: str, payload: Mapping[str, Any], *, connection: Connection | None = None
    ) -> Vote:
        """Prepare what ``work``, as given to the constructor, makes of the payload."""
        work = self._work
        if work is None:
            raise InvalidService("PreparedTransactionManager(work=…) is needed to prepare payloads")
        if not isinstance(payload, Mapping):
            raise InvalidChange("payload", "must be a JSON object")
        return self.prepare(transaction_id, lambda own: work(own, payload))

    def commit(self, transaction_id: str | UUID, *, connection: Connection | None = None) -> None:
        """Commit what was prepared; again: does nothing.

        Raises:
            UnknownTransaction: it was never prepared here.
            TransactionEnded: it was aborted here.
            StillBusy: another session is ending it at this moment.
        """
        id = checked_id(transaction_id)
        crash_at("participant.commit.before_commit")
        if self._finish(id, "commit"):
            crash_at("participant.commit.after_commit")
            return
        with self._engine.begin() as own:
            found = own.execute(_STATE, self._key(id)).first()
        if found is None:
            raise UnknownTransaction(id)
        if found[0] != State.COMMITTED:
            raise TransactionEnded(id, found[0], "commit")

    def abort(self, transaction_id: str | UUID, *, connection: Connection | None = None) -> None:
        """Roll back what was prepared; when nothing was, see to it that nothing will be. Again: does nothing.

        Raises:
            TransactionEnded: it was committed here.
            StillBusy: a prepare of it is in progress and may yet come to its end.
        """
        id = checked_id(transaction_id)
        crash_at("participant.abort.before_commit")
        self._finish(id, "rollback")
        crash_at("participant.abort.after_rollback")
        try:
            state, _ = self._enter_aborted(id, None)
        except DBAPIError as error:
            if is_contention(error):
                # A prepare is at work, or has just ended with a prepared transaction: the next call finds it.
                raise StillBusy(id) from error
            raise
        if state is State.COMMITTED:
            raise TransactionEnded(id, state, "abort")
        crash_at("participant.abort.after_commit")

    def undecided(self, older_than_s: float, limit: int) -> Sequence[Undecided]:
        """This service's prepared transactions in this database that are at least so old, in random order."""
        prefix = f"{FORMAT_ID}_"
        with self._engine.begin() as connection:
            rows = connection.execute(_UNDECIDED, {"prefix": prefix, "seconds": older_than_s}).all()
        ours = [(psycopg.Xid.from_string(gid), float(age)) for gid, age in rows]
        return [Undecided(xid.gtrid, age) for xid, age in ours if xid.bqual == self.service][:limit]

    def forget(self, older_than_s: float, limit: int = 10_000) -> int:
        """As ``participant.resources.ResourceManager.forget``."""
        with self._engine.begin() as connection:
            return forget_ended(connection, self.service, older_than_s, limit)

    # How

    def _attempt(self, id: str, work: Work) -> Vote:
        with self._engine.connect() as connection:
            raw = _psycopg(connection)
            # From here psycopg refuses a commit or rollback by the work.
            raw.tpc_begin(self._xid(id))
            preparing = False
            try:
                connection.execute(_LIMITS, {"wait": self._wait})
                mine = connection.execute(_ENTER, {**self._key(id), "state": State.COMMITTED.value, "reason": None})
                if mine.first() is None:
                    return no("the transaction was aborted here before")
                answer = work(connection)
                if isinstance(answer, Refused):
                    return no(answer.reason)
                crash_at("participant.prepare.before_commit")
                preparing = True
                with _reported(connection, raw):
                    raw.tpc_prepare()
            finally:
                if preparing:
                    # psycopg keeps a connection for the transaction it has prepared; the pool could not reset it.
                    connection.invalidate()
                else:
                    with suppress(psycopg.Error):
                        raw.tpc_rollback()
        crash_at("participant.prepare.after_commit")
        return YES

    def _settled(self, id: str) -> bool:
        """Whether a prepare of this transaction by another call has come to a yes meanwhile."""
        with self._engine.begin() as connection:
            if self._is_prepared(connection, id):
                return True
            found = connection.execute(_STATE, self._key(id)).first()
            return found is not None and found[0] == State.COMMITTED

    def _remember_no(self, id: str, vote: Vote) -> None:
        try:
            self._enter_aborted(id, vote.reason)
        except DBAPIError as error:
            # Another call of it is preparing, or has just prepared: a no would say that nothing is held here.
            if is_contention(error):
                raise StillBusy(id) from error
            raise

    def _enter_aborted(self, id: str, reason: str | None) -> tuple[State, str | None]:
        """Write the tombstone if there is no row, and return what the row says."""
        with self._engine.begin() as connection:
            connection.execute(_LIMITS, {"wait": self._wait})
            connection.execute(_ENTER, {**self._key(id), "state": State.ABORTED, "reason": reason})
            found = connection.execute(_STATE, self._key(id)).one()
            return State(found[0]), found[1]

    def _finish(self, id: str, how: Literal["commit", "rollback"]) -> bool:
        """COMMIT PREPARED or ROLLBACK PREPARED; False if there is no such prepared transaction."""
        deadline = time.monotonic() + self._lock_wait_s
        while True:
            with self._engine.connect() as connection:
                raw = _psycopg(connection)
                try:
                    with _reported(connection, raw):
                        (raw.tpc_commit if how == "commit" else raw.tpc_rollback)(self._xid(id))
                    return True
                except DBAPIError as error:
                    if isinstance(error.orig, errors.UndefinedObject):
                        return False
                    # "is busy": another session is preparing or ending it at this moment.
                    if not isinstance(error.orig, errors.ObjectNotInPrerequisiteState):
                        raise
                    if time.monotonic() > deadline:
                        raise StillBusy(id) from error
            time.sleep(_PAUSE_S)

    def _is_prepared(self, connection: Connection, id: str) -> bool:
        return connection.execute(_IS_PREPARED, {"gid": str(self._xid(id))}).first() is not None

    def _xid(self, id: str) -> psycopg.Xid:
        return psycopg.Xid.from_parts(FORMAT_ID, id, self.service)

    def _key(self, id: str) -> dict[str, str]:
        return {"service": self.service, "id": id}

    @property
    def _wait(self) -> str:
        return f"{max(1, int(self._lock_wait_s * 1000))}ms"


def _psycopg(connection: Connection) -> psycopg.Connection[Any]:
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)  # the constructor has seen to it
    return raw


@contextmanager
def _reported(connection: Connection, raw: psycopg.Connection[Any]) -> Iterator[None]:
    """Errors of psycopg itself as SQLAlchemy reports them, so that callers know one tree."""
    try:
        yield
    except psycopg.Error as error:
        lost = raw.closed
        if lost:
            connection.invalidate()
        raise DBAPIError("two-phase commit", None, error, connection_invalidated=lost) from error


def _explained(error: DBAPIError) -> Exception:
    hint = getattr(getattr(error.orig, "diag", None), "message_hint", None) or ""
    if isinstance(error.orig, errors.ObjectNotInPrerequisiteState) and "max_prepared_transactions" in hint:
        return InvalidService(
            "PostgreSQL refuses PREPARE TRANSACTION: set max_prepared_transactions in postgresql.conf to at least "
            "max_connections and restart it, or use ResourceManager"
        )
    return error
