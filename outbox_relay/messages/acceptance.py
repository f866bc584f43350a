"""How a message becomes a row, once for each idempotency key; what a POST was answered once, it is answered again.

The key holds the answer. It is written in the statement that writes the message, and lives for ``idempotency_days``,
whatever becomes of the message, of the rules and of the registry.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors

from outbox_relay.messages.destinations import USED_HTTP
from outbox_relay.messages.store import BLOCKED, LANE_LOCK, TO_OUTBOX, WRITER, Status
from schemas import FluxoraError
from web.database import Connection, Database


@dataclass(frozen=True, slots=True)
class Posted:
    """A message that keeps every rule, ready to be written."""

    id: UUID
    destination: str
    routed_to: str
    key: str | None
    type: str | None
    #: Compact JSON.
    payload: bytes
    traceparent: str | None
    #: Goes to the destination's topic, if nothing of its lane waits before it.
    by_kafka: bool = False
    #: A rule drops it: it is FAILED from the start.
    dropped: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What a POST is answered: for good, whatever the rules say and the message has become since."""

    message_id: UUID
    status: Status
    #: By an earlier request, or by this one before its connection broke.
    replayed: bool


class MessageExists(FluxoraError):
    """There is another message with this id; nothing was written."""


class KeyReused(FluxoraError):
    """The idempotency key was sent with another body before; nothing was written."""


# One statement: the key, the message and its outbox row are there, or none of them. The key comes first: when
# another request holds it, PostgreSQL waits for that one to commit, `taken` is empty, and nothing is written.
_CREATE = f"""
    WITH {{taken}} given AS (
        SELECT {BLOCKED} AS blocked, %(dropped)s::text IS NOT NULL AS dropped,
               %(by_kafka)s AND NOT {USED_HTTP} AS by_kafka {{from_taken}}
    ), written AS (
        INSERT INTO messages.messages
            (id, destination, routed_to, key, type, payload, traceparent, status, due, handed_at, last_error,
             created_at, ended_at)
        SELECT %(id)s, %(destination)s, %(routed_to)s, %(key)s, %(type)s, %(payload)s::json, %(traceparent)s,
               CASE WHEN dropped THEN 'FAILED' ELSE 'PENDING' END,
               CASE WHEN NOT (dropped OR blocked OR by_kafka) THEN now() END,
               CASE WHEN by_kafka AND NOT (dropped OR blocked) THEN now() END,
               %(dropped)s, clock_timestamp(), CASE WHEN dropped THEN clock_timestamp() END
        FROM given
        RETURNING *
    ), sent AS ({TO_OUTBOX} FROM written WHERE handed_at IS NOT NULL)
    SELECT CASE WHEN handed_at IS NOT NULL THEN pg_advisory_xact_lock({WRITER}) END FROM written
"""
_TAKE = """
    INSERT INTO messages.idempotency_keys (key, request_digest, message_id, status)
    VALUES (%(idempotency_key)s, %(digest)b, %(id)s, %(status)s)
    ON CONFLICT (key) DO NOTHING
    RETURNING key
"""
_CREATE_PLAIN = _CREATE.format(taken="", from_taken="")
_CREATE_ONCE = _CREATE.format(taken=f"taken AS ({_TAKE}),", from_taken="FROM taken")


class Acceptance:
    """Every wait has a limit (``web.database``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, message: Posted, idempotency_key: str | None, digest: bytes | None) -> Answered:
        """Write the message, its outbox row if it has one, and its key, in one transaction.

        A message that is there already, the same in all that was posted, counts as written. If the key was taken,
        nothing is written, and what the request that took it was answered is the answer.

        Raises:
            MessageExists: the id is another message's.
            KeyReused: the key was taken by another request.
            DatabaseUnavailable: it may or may not have been written; sent again with the same id or key it is
                written once.
        """
        values = _values(message, idempotency_key, digest)
        statement = _CREATE_PLAIN if idempotency_key is None else _CREATE_ONCE

        async def write(connection: Connection) -> bool:
            if message.key is None:
                return await (await connection.execute(statement, values)).fetchone() is not None
            async with connection.pipeline(), connection.transaction():
                await connection.execute(LANE_LOCK, values)
                written = await connection.execute(statement, values)
            return await written.fetchone() is not None

        async def work(connection: Connection) -> Answered:
            try:
                if await write(connection):
                    return Answered(message.id, Status(values["status"]), replayed=False)
            except errors.UniqueViolation as error:
                # A first try may have committed before its connection broke.
                there = await _answered_by_id(connection, message)
                if there is None:
                    raise MessageExists(str(message.id)) from error
                if idempotency_key is None:
                    return there
                # From now on the key stands for the message, too.
                await connection.execute(_TAKE, values | {"status": there.status.value})
            # None: it was deleted in between.
            return await _answered_by_key(connection, idempotency_key, digest) or await work(connection)

        return await self._database.run(work)

    async def answered(self, message: Posted, idempotency_key: str | None, digest: bytes | None) -> Answered | None:
        """What an earlier POST of the message was answered, or ``None`` if there was none; writes nothing.

        One with the same key that is under way is waited for: of two, the first decides.

        Raises:
            KeyReused: the key was taken by another request.
        """

        async def work(connection: Connection) -> Answered | None:
            if idempotency_key is None:
                return await _answered_by_id(connection, message)
            async with connection.transaction(force_rollback=True):
                taken = await connection.execute(_TAKE, _values(message, idempotency_key, digest))
                if await taken.fetchone() is None:
                    return await _answered_by_key(connection, idempotency_key, digest)
            return await _answered_by_id(connection, message)

        return await self._database.run(work)


def _values(message: Posted, idempotency_key: str | None, digest: bytes | None) -> dict[str, Any]:
    return {
        "id": message.id,
        "destination": message.destination,
        "routed_to": message.routed_to,
        "key": message.key,
        "type": message.type,
        "payload": message.payload.decode(),
        "traceparent": message.traceparent,
        "by_kafka": message.by_kafka,
        "dropped": message.dropped,
        "status": (Status.PENDING if message.dropped is None else Status.FAILED).value,
        "idempotency_key": idempotency_key,
        "digest": digest,
        "names": [message.routed_to],
        "keys": [message.key],
    }


async def _answered_by_key(connection: Connection, key: str | None, digest: bytes | None) -> Answered | None:
    found = await connection.execute(
        "SELECT message_id, request_digest, status FROM messages.idempotency_keys WHERE key = %s", (key,)
    )
    holder = await found.fetchone()
    if holder is None:
        return None
    if holder["request_digest"] != digest:
        raise KeyReused(str(key))
    return Answered(holder["message_id"], Status(holder["status"]), replayed=True)


async def _answered_by_id(connection: Connection, message: Posted) -> Answered | None:
    """If the message of this id is this one. One that is FAILED without an attempt was dropped when it was posted."""
    found = await connection.execute(
        """
        SELECT CASE WHEN retry_count = 0 AND redeliveries = 0 AND status = 'FAILED' THEN 'FAILED' ELSE 'PENDING' END
            AS status
        FROM messages.messages
        WHERE id = %s AND destination = %s AND key IS NOT DISTINCT FROM %s AND type IS NOT DISTINCT FROM %s
          AND payload::text = %s
        """,
        (message.id, message.destination, message.key, message.type, message.payload.decode()),
    )
    row = await found.fetchone()
    return None if row is None else Answered(message.id, Status(row["status"]), replayed=True)
