"""The Outbox Service's SQL: the database is the queue, and says who may attempt what.

Each message is a row. What makes two replicas, a crash and a zombie harmless:

- *Order.* In a lane only the first message that is PENDING and not in Kafka's hands has a ``due`` time. Whoever
  writes a message into a lane, or ends its head, holds the lane's advisory lock, so the two see each other.
- *Claims.* Whoever takes a message sets ``claim`` to a new id and ``due`` to the end of the lease. What came of the
  attempt is written ``WHERE claim = …``: after a lease has ended and another has taken the message, a zombie's
  answer changes nothing. A process that dies leaves claims that end by themselves.
- *Kafka.* A message for a topic is put into ``fluxora.outbox`` in the same transaction that marks it ``handed_at``.
  Its record can come back before that transaction is visible (DESIGN section 1): whoever confirms it waits for the
  writer, on the row if there is one, else on the advisory lock of its id.

How a message comes to be a row: ``outbox_relay.messages.acceptance``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from outbox_relay.messages.names import MESSAGES
from schemas import FluxoraError
from web.database import Connection, Database

SOURCE = "/fluxora/outbox-service"
#: ``ce_type`` of a message that has none.
DEFAULT_TYPE = "fluxora.Message"


class Status(StrEnum):
    #: accepted: will be attempted, is being attempted, or is in Kafka's hands
    PENDING = "PENDING"
    #: the receiver answered 2xx, or the record is in its topic
    DELIVERED = "DELIVERED"
    #: given up after the policy's attempts, or dropped by a rule; can be sent again
    FAILED = "FAILED"


class Outcome(StrEnum):
    """What became of a claim."""

    DELIVERED = "DELIVERED"
    #: put into the destination's topic
    HANDED = "HANDED"
    #: failed, and is attempted again
    RETRY = "RETRY"
    FAILED = "FAILED"
    #: not attempted, for a reason that says nothing about the message
    POSTPONED = "POSTPONED"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that is ours to attempt, for the length of a lease."""

    id: UUID
    claim: UUID
    routed_to: str
    key: str | None
    type: str | None
    payload: str
    traceparent: str | None
    retry_count: int
    #: An earlier message of its lane is in Kafka's hands.
    behind_kafka: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    of: Claimed
    outcome: Outcome
    error: str | None = None
    #: Until the next attempt, with RETRY and POSTPONED.
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MessageFilter:
    destination: str | None = None
    type: str | None = None
    statuses: Sequence[Status] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    #: Only what comes after this place, newest first.
    after: tuple[datetime, UUID] | None = None


class NotFailed(FluxoraError):
    """Only a FAILED message can be sent again; ``status`` is what it is instead."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


# Statements that acceptance and delivery share.
LANE_LOCK = """
    SELECT pg_advisory_xact_lock(lock) FROM (
        SELECT DISTINCT hashtextextended(lane.name || chr(31) || lane.key, 7) AS lock
        FROM unnest(%(names)s::text[], %(keys)s::text[]) AS lane (name, key) ORDER BY 1
    ) AS locks
"""

BLOCKED = """
    EXISTS (SELECT 1 FROM messages.messages
            WHERE routed_to = %(routed_to)s AND key = %(key)s AND status = 'PENDING' AND handed_at IS NULL)
"""

TO_OUTBOX = f"""
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT id, COALESCE(type, '{DEFAULT_TYPE}'), COALESCE(key, id::text), COALESCE(type, '{DEFAULT_TYPE}'),
           convert_to(payload::text, 'UTF8'), routed_to || '{MESSAGES}', '{SOURCE}', traceparent, 'application/json'
"""

# Held by whoever writes a new row for a topic until its commit is visible.
WRITER = "hashtextextended(id::text, 8)"

# Destinations are found one by one along the index, so that none with a large backlog hides the others; of each, as
# many as have a place, and of all the first ones first.
_CLAIM = """
    WITH RECURSIVE waiting AS (
        (SELECT routed_to FROM messages.messages WHERE due IS NOT NULL ORDER BY routed_to LIMIT 1)
        UNION ALL
        SELECT (SELECT routed_to FROM messages.messages
                WHERE due IS NOT NULL AND routed_to > waiting.routed_to ORDER BY routed_to LIMIT 1)
        FROM waiting WHERE waiting.routed_to IS NOT NULL
    ), picked AS MATERIALIZED (
        SELECT found.id FROM waiting
        LEFT JOIN unnest(%(names)s::text[], %(limits)s::int[]) AS known (name, places)
            ON known.name = waiting.routed_to
        CROSS JOIN LATERAL (
            SELECT id, row_number() OVER () AS turn FROM (
                SELECT id FROM messages.messages AS due
                WHERE due.routed_to = waiting.routed_to AND due.due <= now()
                ORDER BY due.due LIMIT COALESCE(known.places, %(places)s) FOR UPDATE SKIP LOCKED
            ) AS locked
        ) AS found
        WHERE waiting.routed_to IS NOT NULL
        ORDER BY found.turn LIMIT %(limit)s
    )
    UPDATE messages.messages AS message
    SET claim = gen_random_uuid(), due = now() + %(lease)s * interval '1 second'
    FROM picked WHERE message.id = picked.id
    RETURNING message.id, claim, routed_to, key, type, payload::text AS payload, traceparent, retry_count,
        EXISTS (SELECT 1 FROM messages.messages AS earlier
                WHERE earlier.routed_to = message.routed_to AND earlier.key = message.key
                  AND earlier.status = 'PENDING' AND earlier.handed_at IS NOT NULL) AS behind_kafka
"""

_SETTLE = f"""
    WITH asked AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(claims)s::uuid[], %(outcomes)s::text[], %(errors)s::text[],
                             %(waits)s::float8[]) AS asked (id, claim, outcome, error, wait)
    ), given AS (
        -- Meanwhile it may have been reached over HTTP for the first time, by another replica: decided once more.
        SELECT asked.*, CASE WHEN outcome = 'HANDED' AND EXISTS (
                SELECT 1 FROM messages.messages AS message JOIN messages.http_destinations ON name = routed_to
                WHERE message.id = asked.id
            ) THEN 'POSTPONED' ELSE outcome END AS settles
        FROM asked
    ), settled AS (
        UPDATE messages.messages AS message
        SET status = CASE WHEN settles IN ('DELIVERED', 'FAILED') THEN settles ELSE status END,
            ended_at = CASE WHEN settles IN ('DELIVERED', 'FAILED') THEN clock_timestamp() END,
            due = CASE WHEN settles IN ('RETRY', 'POSTPONED')
                       THEN clock_timestamp() + COALESCE(given.wait, 0) * interval '1 second' END,
            handed_at = CASE WHEN settles = 'HANDED' THEN clock_timestamp() END,
            retry_count = retry_count + CASE WHEN settles IN ('RETRY', 'FAILED') THEN 1 ELSE 0 END,
            last_error = COALESCE(given.error, last_error),
            letter_due = settles = 'FAILED',
            claim = NULL
        FROM given
        WHERE message.id = given.id AND message.claim = given.claim AND status = 'PENDING'
        RETURNING message.*
    ), sent AS ({TO_OUTBOX} FROM settled WHERE handed_at IS NOT NULL)
    SELECT id FROM settled
"""

_PROMOTE = """
    UPDATE messages.messages SET due = clock_timestamp()
    WHERE id IN (
        SELECT head.id
        FROM (SELECT DISTINCT name, key FROM unnest(%(names)s::text[], %(keys)s::text[]) AS lane (name, key)) AS lane
        CROSS JOIN LATERAL (
            SELECT id, due FROM messages.messages AS message
            WHERE message.routed_to = lane.name AND message.key = lane.key
              AND status = 'PENDING' AND handed_at IS NULL
            ORDER BY position LIMIT 1
        ) AS head
        WHERE head.due IS NULL
    )
"""

# It takes the last place of its lane: those after it have passed while it was FAILED.
_REDELIVER = f"""
    UPDATE messages.messages
    SET status = CASE WHEN %(dropped)s::text IS NULL THEN 'PENDING' ELSE 'FAILED' END,
        routed_to = %(routed_to)s,
        position = DEFAULT,
        due = CASE WHEN %(dropped)s::text IS NULL AND NOT {BLOCKED} THEN now() END,
        last_error = COALESCE(%(dropped)s::text, last_error),
        retry_count = 0, redeliveries = redeliveries + 1, claim = NULL, handed_at = NULL, letter_due = false,
        ended_at = CASE WHEN %(dropped)s::text IS NOT NULL THEN clock_timestamp() END
    WHERE id = %(id)s AND status = 'FAILED'
"""

_CONFIRM = """
    UPDATE messages.messages SET status = 'DELIVERED', ended_at = clock_timestamp()
    WHERE id IN (SELECT id FROM messages.messages WHERE id = ANY(%(ids)s) AND status = 'PENDING'
                 AND handed_at IS NOT NULL ORDER BY id FOR UPDATE)
    RETURNING id
"""

# Whoever is about to mark a row as handed over holds its lock, and whoever makes it so that of its id.
_WRITERS = (
    "SELECT id FROM messages.messages WHERE id = ANY(%(ids)s) AND status = 'PENDING' ORDER BY id FOR UPDATE",
    f"""
    SELECT pg_advisory_xact_lock_shared(lock) FROM (
        SELECT DISTINCT {WRITER} AS lock FROM unnest(%(ids)s::uuid[]) AS wanted (id)
        WHERE NOT EXISTS (SELECT 1 FROM messages.messages AS message WHERE message.id = wanted.id) ORDER BY 1
    ) AS locks
    """,
)

_SHOWN = (
    "id, destination, routed_to, key, type, status, retry_count, redeliveries, last_error, due, claim, handed_at, "
    "created_at, ended_at"
)


class Store:
    """Reads and writes; every wait has a limit (``web.database``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, limits: Mapping[str, int], places: int, limit: int, lease_seconds: float) -> list[Claimed]:
        """Take messages that are due, for the length of a lease.

        Args:
            limits: most of these destinations.
            places: most of any other destination.
            limit: most of all.
        """
        values = {
            "names": list(limits),
            "limits": list(limits.values()),
            "places": places,
            "limit": limit,
            "lease": lease_seconds,
        }

        async def work(connection: Connection) -> list[Claimed]:
            rows = await (await connection.execute(_CLAIM, values)).fetchall()
            return [Claimed(**row) for row in rows]

        return await self._database.run(work)

    async def settle(self, settlements: Sequence[Settlement]) -> set[UUID]:
        """Write down what became of claims, and make due what they held up, in one transaction.

        Returns the ids of those whose claim was still theirs; nothing was written for the others.
        """
        lanes = [(one.of.routed_to, one.of.key) for one in settlements if one.of.key is not None]
        values = {
            "ids": [one.of.id for one in settlements],
            "claims": [one.of.claim for one in settlements],
            "outcomes": [one.outcome.value for one in settlements],
            "errors": [one.error for one in settlements],
            "waits": [one.wait_seconds for one in settlements],
            "names": [name for name, _ in lanes],
            "keys": [key for _, key in lanes],
        }

        async def work(connection: Connection) -> set[UUID]:
            if not lanes:
                return {row["id"] for row in await (await connection.execute(_SETTLE, values)).fetchall()}
            async with connection.pipeline(), connection.transaction():
                await connection.execute(LANE_LOCK, values)
                settled = await connection.execute(_SETTLE, values)
                await connection.execute(_PROMOTE, values)
            return {row["id"] for row in await settled.fetchall()}

        return await self._database.run(work)

    async def confirm(self, ids: Sequence[UUID]) -> int:
        """Mark those of the messages as DELIVERED that wait for Kafka; their records are in their topics.

        Raises:
            DatabaseUnavailable: also when a writer's commit stays invisible for too long; to be asked again.
        """

        async def work(connection: Connection) -> int:
            confirmed = await (await connection.execute(_CONFIRM, {"ids": list(ids)})).fetchall()
            rest = {"ids": list(set(ids) - {row["id"] for row in confirmed})}
            if not rest["ids"]:
                return len(confirmed)
            # Second copies, records of others, those of pruned messages, and any that has overtaken its row.
            async with connection.pipeline(), connection.transaction():
                for statement in _WRITERS:
                    await connection.execute(statement, rest)
                late = await connection.execute(_CONFIRM, rest)
            return len(confirmed) + late.rowcount

        return await self._database.run(work)

    async def redeliver(self, message_id: UUID, routed_to: str, key: str | None, dropped: str | None) -> None:
        """Make a FAILED message PENDING again, at the end of its lane.

        Raises:
            NotFailed: it is not FAILED; nothing was written.
        """
        values = {
            "id": message_id,
            "routed_to": routed_to,
            "key": key,
            "dropped": dropped,
            "names": [routed_to],
            "keys": [key],
        }

        async def work(connection: Connection) -> None:
            async with connection.transaction():
                if key is not None:
                    await connection.execute(LANE_LOCK, values)
                if (await connection.execute(_REDELIVER, values)).rowcount == 1:
                    return
                found = await connection.execute("SELECT status FROM messages.messages WHERE id = %s", (message_id,))
                row = await found.fetchone()
                raise NotFailed("deleted" if row is None else row["status"])

        await self._database.run(work)

    async def read(self, message_id: UUID) -> dict[str, Any] | None:
        """One message as columns, its payload as text."""

        async def work(connection: Connection) -> dict[str, Any] | None:
            found = await connection.execute(
                f"SELECT {_SHOWN}, payload::text AS payload FROM messages.messages WHERE id = %s", (message_id,)
            )
            return await found.fetchone()

        return await self._database.run(work)

    async def page(self, wanted: MessageFilter, limit: int) -> list[dict[str, Any]]:
        """At most ``limit`` messages without their payloads, newest first, as columns."""
        conditions = ["true"]
        values: dict[str, Any] = {"limit": limit}
        for condition, name, value in (
            ("destination = %(destination)s", "destination", wanted.destination),
            ("type = %(type)s", "type", wanted.type),
            ("status = ANY(%(statuses)s)", "statuses", list(wanted.statuses) or None),
            ("created_at > %(created_after)s", "created_after", wanted.created_after),
            ("created_at < %(created_before)s", "created_before", wanted.created_before),
        ):
            if value is not None:
                conditions.append(condition)
                values[name] = value
        if wanted.after is not None:
            conditions.append("(created_at, id) < (%(after_time)s, %(after_id)s)")
            values["after_time"], values["after_id"] = wanted.after
        statement = (
            f"SELECT {_SHOWN} FROM messages.messages WHERE {' AND '.join(conditions)} "
            "ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
        )

        async def work(connection: Connection) -> list[dict[str, Any]]:
            # No preparation: every set of filters is another statement.
            return await (await connection.execute(statement, values, prepare=False)).fetchall()

        return await self._database.run(work)

    async def letters(self, limit: int) -> list[dict[str, Any]]:
        """FAILED messages whose dead letters have not left, the oldest first, as columns."""

        async def work(connection: Connection) -> list[dict[str, Any]]:
            found = await connection.execute(
                f"SELECT {_SHOWN}, traceparent, payload::text AS payload FROM messages.messages "
                "WHERE letter_due ORDER BY ended_at LIMIT %s",
                (limit,),
            )
            return await found.fetchall()

        return await self._database.run(work)

    async def letters_left(self, letters: Sequence[tuple[UUID, datetime]]) -> None:
        """The letters of these messages have left, each of the failure at its time: one that was sent again and has
        FAILED anew meanwhile still owes another."""
        values = ([id for id, _ in letters], [failed_at for _, failed_at in letters])

        async def work(connection: Connection) -> None:
            await connection.execute(
                """
                UPDATE messages.messages AS message SET letter_due = false
                FROM unnest(%s::uuid[], %s::timestamptz[]) AS letter (id, failed_at)
                WHERE message.id = letter.id AND message.ended_at = letter.failed_at
                """,
                values,
            )

        await self._database.run(work)

    async def pending(self) -> dict[str, int]:
        """PENDING messages by destination."""

        async def work(connection: Connection) -> dict[str, int]:
            found = await connection.execute(
                "SELECT routed_to, count(*) AS pending FROM messages.messages WHERE status = 'PENDING' GROUP BY 1"
            )
            return {row["routed_to"]: row["pending"] for row in await found.fetchall()}

        return await self._database.run(work)

    async def prune(self, status: Status, days: float, rows: int) -> int:
        """Delete at most ``rows`` messages that ended in ``status`` longer ago; returns how many."""
        return await self._delete(
            """
            DELETE FROM messages.messages WHERE id IN (
                SELECT id FROM messages.messages
                WHERE status = %(status)s AND status <> 'PENDING' AND NOT letter_due
                  AND ended_at < now() - %(days)s * interval '1 day'
                ORDER BY ended_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED)
            """,
            {"status": status.value, "days": days, "rows": rows},
        )

    async def prune_keys(self, days: float, rows: int) -> int:
        """Delete at most ``rows`` idempotency keys that are older; returns how many."""
        return await self._delete(
            """
            DELETE FROM messages.idempotency_keys WHERE key IN (
                SELECT key FROM messages.idempotency_keys WHERE created_at < now() - %(days)s * interval '1 day'
                ORDER BY created_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED)
            """,
            {"days": days, "rows": rows},
        )

    async def check(self) -> None:
        """Raise DatabaseUnavailable, saying why, unless a message could be written."""

        async def work(connection: Connection) -> None:
            await connection.execute(
                "SELECT 1 FROM messages.messages, messages.http_destinations, fluxora.outbox LIMIT 0"
            )

        await self._database.run(work)

    async def _delete(self, statement: str, values: Mapping[str, Any]) -> int:
        async def work(connection: Connection) -> int:
            return (await connection.execute(statement, values)).rowcount

        return await self._database.run(work)
