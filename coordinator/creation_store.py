"""The SQL that makes transactions: the STARTED row, the first input and the idempotency key, in one statement."""

import time
from collections.abc import Sequence
from uuid import UUID

from psycopg import errors

from coordinator.submission import Submission
from participant.arrays import bytea_array, text_array, uuid_array
from participant.outbox import AVRO
from participant.sagas import INPUT_TOPIC
from saga_processors.retention import may_be_pruned
from schemas import FluxoraError
from web.database import Connection, Database

SOURCE = "/fluxora/coordinator"


class TransactionExists(FluxoraError):
    """There is a transaction with this id, or there was one that has been pruned; nothing was written."""

    def __init__(self, id: UUID, ended: str | None = None) -> None:
        """``ended``: how, if it was pruned."""
        super().__init__(str(id))
        self.ended = ended


# One statement is one transaction and one round trip: all rows are there, or none. The key comes first: when
# another request holds it, PostgreSQL waits for that one to commit, `taken` is empty, and nothing is written.
_WRITE = """
    written AS (
        INSERT INTO public.transactions
            (id, kind, name, state, services, version, definition, created_at, updated_at)
        SELECT %(transaction_id)s, %(kind)s::text, %(name)s::text, 'STARTED', %(services)s::text[], 0,
               %(definition)s::json, now(), now()
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
        VALUES (%(key)s, %(digest)b, %(transaction_id)s)
        ON CONFLICT (key) DO NOTHING
        RETURNING key
    ),""" + _WRITE.format(from_taken="FROM taken")

# The same for many, whose ids are ours and so new. Keys are taken in their order, so that two batches with
# the same keys wait for each other instead of deadlocking; of two rows with one key the first takes it.
_CREATE_MANY = """
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            %(transaction_id)s::uuid[], %(kind)s::text[], %(name)s::text[], %(services)s::text[],
            %(definition)s::text[], %(event_id)s::uuid[], %(payload)s::bytea[], %(traceparent)s::text[],
            %(key)s::text[], %(digest)s::bytea[], %(type)s::text[]
        ) AS given
            (transaction_id, kind, name, services, definition, event_id, payload, traceparent, key, digest, type)
    ), taken AS (
        INSERT INTO public.idempotency_keys (key, request_digest, transaction_id)
        SELECT key, digest, transaction_id FROM given WHERE key IS NOT NULL ORDER BY key, transaction_id
        ON CONFLICT (key) DO NOTHING
        RETURNING transaction_id
    ), written AS (
        INSERT INTO public.transactions
            (id, kind, name, state, services, version, definition, created_at, updated_at)
        SELECT transaction_id, kind, name, 'STARTED', services::text[], 0, definition::json, now(), now()
        FROM given WHERE key IS NULL OR transaction_id IN (SELECT transaction_id FROM taken)
        RETURNING id
    )
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT event_id, type, transaction_id::text, type, payload, %(topic)s::text,
           %(source)s::text, traceparent, %(content_type)s::text
    FROM given JOIN written ON written.id = given.transaction_id
    RETURNING aggregateid::uuid AS id
"""


class CreationStore:
    """Writes new transactions, of any kind."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: Submission, key: str | None, digest: bytes | None) -> tuple[UUID, bytes | None]:
        """Write the transaction, its first input and its key.

        Returns the transaction's id and ``None``; or, if the key was taken, the id of the transaction that has it
        and the digest of the request that took it.

        Raises:
            TransactionExists: the id is taken, or was.
            DatabaseUnavailable: it may or may not have been written; sent again with the same id or key it is
                written once.
        """
        now_ms = round(time.time() * 1000)
        values = {
            "transaction_id": new.transaction_id,
            "kind": new.kind,
            "name": new.name,
            "services": new.services,
            "definition": new.definition.decode(),
            "event_id": new.event_id,
            "type": new.type,
            "payload": new.payload,
            "topic": INPUT_TOPIC,
            "source": SOURCE,
            "traceparent": new.traceparent,
            "content_type": AVRO,
            "key": key,
            "digest": digest,
        }

        async def work(connection: Connection) -> tuple[UUID, bytes | None]:
            # Its first input would be IGNORED, and the row stay STARTED for ever.
            if may_be_pruned(new.transaction_id, now_ms) and (ended := await _pruned(connection, new.transaction_id)):
                # But a replay is answered as the first was.
                if (holder := await _holder(connection, key)) is not None:
                    return holder
                raise TransactionExists(new.transaction_id, ended)
            try:
                written = await connection.execute(_CREATE if key is None else _CREATE_ONCE, values)
            except errors.UniqueViolation as error:
                # A first try may have committed before its connection broke: the outbox row is then ours.
                if await _exists(connection, new.event_id):
                    return new.transaction_id, None
                raise TransactionExists(new.transaction_id) from error
            if written.rowcount == 1:
                return new.transaction_id, None
            if (holder := await _holder(connection, key)) is None:  # deleted in between
                return await work(connection)
            return holder

        return await self._database.run(work)

    async def holder(self, key: str) -> tuple[UUID, bytes] | None:
        """The id of the transaction that has this key, and the digest of the request that took it."""
        return await self._database.run(lambda connection: _holder(connection, key))

    async def create_many(self, wanted: Sequence[tuple[Submission, str | None, bytes | None]]) -> set[UUID]:
        """Write transactions whose ids are new, with their keys and digests, in one transaction.

        Returns the ids of those that were written: the others' keys were taken. If the connection broke, they
        may have been written; :meth:`create` finds out for each.

        Raises:
            psycopg.Error: one of them cannot be written, or the connection broke.
            DatabaseUnavailable: as :meth:`create`.
        """
        values = {
            "transaction_id": uuid_array(new.transaction_id for new, _, _ in wanted),
            "kind": text_array(new.kind for new, _, _ in wanted),
            "name": text_array(new.name for new, _, _ in wanted),
            # An array of arrays must be rectangular, so each goes as its text.
            "services": text_array(text_array(new.services) for new, _, _ in wanted),
            "definition": text_array(new.definition.decode() for new, _, _ in wanted),
            "event_id": uuid_array(new.event_id for new, _, _ in wanted),
            "payload": bytea_array(new.payload for new, _, _ in wanted),
            "traceparent": text_array(new.traceparent for new, _, _ in wanted),
            "key": text_array(key for _, key, _ in wanted),
            "digest": bytea_array(digest for _, _, digest in wanted),
            "type": text_array(new.type for new, _, _ in wanted),
            "topic": INPUT_TOPIC,
            "source": SOURCE,
            "content_type": AVRO,
        }

        async def work(connection: Connection) -> set[UUID]:
            return {row["id"] for row in await (await connection.execute(_CREATE_MANY, values)).fetchall()}

        return await self._database.run(work, again=False)


async def _holder(connection: Connection, key: str | None) -> tuple[UUID, bytes] | None:
    found = await connection.execute(
        "SELECT transaction_id, request_digest FROM public.idempotency_keys WHERE key = %s", (key,)
    )
    row = await found.fetchone()
    return None if row is None else (row["transaction_id"], row["request_digest"])


async def _pruned(connection: Connection, id: UUID) -> str | None:
    found = await connection.execute("SELECT state FROM public.pruned_transactions WHERE id = %s", (id,))
    row = await found.fetchone()
    return None if row is None else str(row["state"])


async def _exists(connection: Connection, event_id: UUID) -> bool:
    found = await connection.execute("SELECT 1 FROM fluxora.outbox WHERE id = %s", (event_id,))
    return await found.fetchone() is not None
