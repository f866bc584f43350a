"""The coordinator's SQL: a saga is made by one statement, and read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import errors

from coordinator.submission import Submission
from coordinator.views import SagaRow
from participant.outbox import AVRO
from participant.sagas import INPUT_TOPIC, STARTED
from saga_processors.saga import SagaState
from schemas import FluxoraError
from web.database import Connection, Database

SOURCE = "/fluxora/coordinator"


class SagaExists(FluxoraError):
    """There is a saga with this id; nothing was written."""


# One statement is one transaction and one round trip: all rows are there, or none. The key comes first: when
# another request holds it, PostgreSQL waits for that one to commit, `taken` is empty, and nothing is written.
_WRITE = """
    written AS (
        INSERT INTO public.transactions
            (id, kind, name, state, services, version, definition, created_at, updated_at)
        SELECT %(saga_id)s, 'saga', %(name)s::text, 'STARTED', %(services)s::text[], 0, %(definition)s::json,
               now(), now()
        {from_taken}
        RETURNING id
    )
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT %(event_id)s, %(type)s::text, id::text, %(type)s::text, %(payload)b::bytea, %(topic)s::text,
           %(source)s::text, %(traceparent)s::text, %(content_type)s::text
    FROM written
"""
_CREATE = "WITH" + _WRITE.format(from_taken="")
_CREATE_ONCE = """
    WITH taken AS (
        INSERT INTO public.idempotency_keys (key, request_digest, transaction_id)
        VALUES (%(key)s, %(digest)b, %(saga_id)s)
        ON CONFLICT (key) DO NOTHING
        RETURNING key
    ),""" + _WRITE.format(from_taken="FROM taken")

# The same for many, whose ids are ours and so new. Keys are taken in their order, so that two batches with
# the same keys wait for each other instead of deadlocking; of two rows with one key the first takes it.
_CREATE_MANY = """
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            %(saga_id)s::uuid[], %(name)s::text[], %(services)s::text[], %(definition)s::text[],
            %(event_id)s::uuid[], %(payload)s::bytea[], %(traceparent)s::text[], %(key)s::text[],
            %(digest)s::bytea[]
        ) AS given (saga_id, name, services, definition, event_id, payload, traceparent, key, digest)
    ), taken AS (
        INSERT INTO public.idempotency_keys (key, request_digest, transaction_id)
        SELECT key, digest, saga_id FROM given WHERE key IS NOT NULL ORDER BY key, saga_id
        ON CONFLICT (key) DO NOTHING
        RETURNING transaction_id
    ), written AS (
        INSERT INTO public.transactions
            (id, kind, name, state, services, version, definition, created_at, updated_at)
        SELECT saga_id, 'saga', name, 'STARTED', services::text[], 0, definition::json, now(), now()
        FROM given WHERE key IS NULL OR saga_id IN (SELECT transaction_id FROM taken)
        RETURNING id
    )
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT event_id, %(type)s::text, saga_id::text, %(type)s::text, payload, %(topic)s::text,
           %(source)s::text, traceparent, %(content_type)s::text
    FROM given JOIN written ON written.id = given.saga_id
    RETURNING aggregateid::uuid AS id
"""

_COLUMNS = "id, name, state, definition, progress, needs_attention, parked, created_at, updated_at"
_READ = f"SELECT {_COLUMNS} FROM public.transactions WHERE id = %s AND kind = 'saga'"
_READ_ENDED = f"SELECT {_COLUMNS} FROM public.transactions WHERE id = ANY(%s) AND state IN ('COMPLETED', 'FAILED')"


@dataclass(frozen=True, slots=True)
class SagaFilter:
    name: str | None = None
    states: Sequence[SagaState] = ()
    service: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    needs_attention: bool | None = None
    #: Only what comes after this place, newest first.
    after: tuple[datetime, UUID] | None = None


class Store:
    """Reads and writes; every wait has a limit (``web.database``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, saga: Submission, key: str | None, digest: bytes | None) -> tuple[UUID, bytes | None]:
        """Write the saga, its first input and its key.

        Returns the saga's id and ``None``; or, if the key was taken, the id of the saga and the digest of the
        request that took it.

        Raises:
            SagaExists: the id is taken.
            DatabaseUnavailable: it may or may not have been written; sent again with the same id or key it is
                written once.
        """
        values = {
            "saga_id": saga.saga_id,
            "name": saga.name,
            "services": saga.services,
            "definition": saga.definition.decode(),
            "event_id": saga.event_id,
            "type": STARTED,
            "payload": saga.payload,
            "topic": INPUT_TOPIC,
            "source": SOURCE,
            "traceparent": saga.traceparent,
            "content_type": AVRO,
            "key": key,
            "digest": digest,
        }

        async def work(connection: Connection) -> tuple[UUID, bytes | None]:
            try:
                written = await connection.execute(_CREATE if key is None else _CREATE_ONCE, values)
            except errors.UniqueViolation as error:
                # A first try may have committed before its connection broke: the outbox row is then ours.
                if await _exists(connection, saga.event_id):
                    return saga.saga_id, None
                raise SagaExists(str(saga.saga_id)) from error
            if written.rowcount == 1:
                return saga.saga_id, None
            found = await connection.execute(
                "SELECT transaction_id, request_digest FROM public.idempotency_keys WHERE key = %s", (key,)
            )
            holder = await found.fetchone()
            if holder is None:  # deleted in between
                return await work(connection)
            return holder["transaction_id"], holder["request_digest"]

        return await self._database.run(work)

    async def create_many(self, wanted: Sequence[tuple[Submission, str | None, bytes | None]]) -> set[UUID]:
        """Write sagas whose ids are new, with their keys and digests, in one transaction.

        Returns the ids of those that were written: the others' keys were taken. If the connection broke, they
        may have been written; :meth:`create` finds out for each.

        Raises:
            psycopg.Error: one of them cannot be written, or the connection broke.
            DatabaseUnavailable: as :meth:`create`.
        """
        values = {
            "saga_id": [saga.saga_id for saga, _, _ in wanted],
            "name": [saga.name for saga, _, _ in wanted],
            # An array of arrays must be rectangular, so each goes as its text. A name has nothing to escape.
            "services": ["{" + ",".join(f'"{name}"' for name in saga.services) + "}" for saga, _, _ in wanted],
            "definition": [saga.definition.decode() for saga, _, _ in wanted],
            "event_id": [saga.event_id for saga, _, _ in wanted],
            "payload": [saga.payload for saga, _, _ in wanted],
            "traceparent": [saga.traceparent for saga, _, _ in wanted],
            "key": [key for _, key, _ in wanted],
            "digest": [digest for _, _, digest in wanted],
            "type": STARTED,
            "topic": INPUT_TOPIC,
            "source": SOURCE,
            "content_type": AVRO,
        }

        async def work(connection: Connection) -> set[UUID]:
            return {row["id"] for row in await (await connection.execute(_CREATE_MANY, values)).fetchall()}

        return await self._database.run(work, again=False)

    async def read(self, saga_id: UUID) -> SagaRow | None:
        async def work(connection: Connection) -> SagaRow | None:
            row = await (await connection.execute(_READ, (saga_id,))).fetchone()
            return None if row is None else _row(row)

        return await self._database.run(work)

    async def read_ended(self, saga_ids: Sequence[UUID]) -> list[SagaRow]:
        """Those of the sagas that have ended."""

        async def work(connection: Connection) -> list[SagaRow]:
            rows = await (await connection.execute(_READ_ENDED, (list(saga_ids),))).fetchall()
            return [_row(row) for row in rows]

        return await self._database.run(work)

    async def page(self, wanted: SagaFilter, limit: int) -> list[dict[str, Any]]:
        """Summaries of at most ``limit`` sagas, newest first, as columns."""
        conditions = ["kind = 'saga'"]
        values: dict[str, Any] = {"limit": limit}
        for condition, name, value in (
            ("name = %(name)s", "name", wanted.name),
            ("state = ANY(%(states)s)", "states", list(wanted.states) or None),
            ("%(service)s = ANY(services)", "service", wanted.service),
            ("created_at > %(created_after)s", "created_after", wanted.created_after),
            ("created_at < %(created_before)s", "created_before", wanted.created_before),
            ("needs_attention = %(needs_attention)s", "needs_attention", wanted.needs_attention),
        ):
            if value is not None:
                conditions.append(condition)
                values[name] = value
        if wanted.after is not None:
            conditions.append("(created_at, id) < (%(after_time)s, %(after_id)s)")
            values["after_time"], values["after_id"] = wanted.after
        statement = (
            "SELECT id, name, state, services, needs_attention, parked, created_at, updated_at "
            f"FROM public.transactions WHERE {' AND '.join(conditions)} "
            "ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
        )

        async def work(connection: Connection) -> list[dict[str, Any]]:
            # No preparation: every set of filters is another statement.
            return await (await connection.execute(statement, values, prepare=False)).fetchall()

        return await self._database.run(work)

    async def check(self) -> None:
        """Raise DatabaseUnavailable, saying why, unless a saga could be written."""

        async def work(connection: Connection) -> None:
            await connection.execute("SELECT 1 FROM public.transactions, fluxora.outbox LIMIT 0")

        await self._database.run(work)


async def _exists(connection: Connection, event_id: UUID) -> bool:
    found = await connection.execute("SELECT 1 FROM fluxora.outbox WHERE id = %s", (event_id,))
    return await found.fetchone() is not None


def _row(row: dict[str, Any]) -> SagaRow:
    row["state"] = SagaState(row["state"])
    return SagaRow(**row)
