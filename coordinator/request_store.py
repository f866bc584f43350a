"""The SQL of requests: one is put into the outbox, its answer found in the journal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors

from coordinator.creation_store import SOURCE
from participant.outbox import AVRO
from participant.sagas import INPUT_TOPIC
from saga_processors.machine import Verdict
from web.database import Connection, Database

REQUEST_MADE = "fluxora.RequestMade"

# One statement for many, one transaction and one round trip. Only a transaction that is there is asked: REST wrote its
# row before its id was answered. Keys are taken in their order, so that two batches with the same keys wait for each
# other instead of deadlocking; of two requests with one key the first takes it.
_WRITE = """
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            %(request_id)s::uuid[], %(transaction_id)s::uuid[], %(kind)s::text[], %(payload)s::bytea[],
            %(traceparent)s::text[], %(key)s::text[], %(digest)s::bytea[]
        ) AS given (request_id, transaction_id, kind, payload, traceparent, key, digest)
    ), known AS MATERIALIZED (
        SELECT given.* FROM given JOIN public.transactions t ON t.id = given.transaction_id AND t.kind = given.kind
    ), keyed AS (
        SELECT DISTINCT ON (key) * FROM known WHERE key IS NOT NULL ORDER BY key, request_id
    ), taken AS (
        INSERT INTO public.idempotency_keys (key, request_digest, transaction_id)
        SELECT key, digest, transaction_id FROM keyed ORDER BY key
        ON CONFLICT (key) DO NOTHING
        RETURNING key
    ), chosen AS (
        SELECT * FROM known WHERE key IS NULL
        UNION ALL
        SELECT keyed.* FROM keyed JOIN taken USING (key)
    )
    INSERT INTO fluxora.outbox
        (id, aggregatetype, aggregateid, type, payload, topic, source, traceparent, content_type)
    SELECT request_id, %(type)s::text, transaction_id::text, %(type)s::text, payload, %(topic)s::text,
           %(source)s::text, traceparent, %(content_type)s::text
    FROM chosen
    RETURNING id
"""

# The log can hold a request twice (Debezium delivers at least once): the first one is the one that counted.
_ANSWERS = """
    SELECT DISTINCT ON (input ->> 'request_id') (input ->> 'request_id')::uuid AS request_id, outcome, reason, state,
        input #>> '{participant,transport}' AS transport
    FROM public.journal
    WHERE input ->> 'request_id' = ANY(%s) AND input_type = 'fluxora.RequestMade'
      AND (outcome = ANY(%s) OR outcome = 'PARKED' AND input ->> 'request' = 'UNPARK')
    ORDER BY input ->> 'request_id', "offset"
"""
_VERDICTS = [verdict.value for verdict in Verdict]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is written."""

    request_id: UUID
    transaction_id: UUID
    #: Of the transaction: ``saga`` or ``transaction``.
    kind: str
    #: The encoded fluxora.RequestMade.
    payload: bytes
    traceparent: str | None
    #: The client's Idempotency-Key and the digest of its request.
    key: str | None
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the machine made of a request."""

    verdict: Verdict
    #: Why it was rejected or ignored.
    reason: str | None
    #: The transaction's state after it; ``None``: the machine knows no such transaction.
    state: str | None
    #: How a participant that was to be added is called.
    transport: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What became of writing a request."""

    #: The transaction is there; otherwise nothing was written.
    known: bool
    #: Set when the key was taken: the digest of the request that took it. Nothing was written.
    holder: bytes | None = None


class RequestStore:
    """Writes requests and reads their answers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, asked: Asked) -> Written:
        """Put one request into the outbox.

        Raises:
            DatabaseUnavailable: it may or may not have been written.
        """

        async def work(connection: Connection) -> Written:
            try:
                if await (await connection.execute(_WRITE, _columns([asked]))).fetchone() is not None:
                    return Written(known=True)
            except errors.UniqueViolation:
                # Only its own id can be in the outbox: a first try committed before its connection broke.
                return Written(known=True)
            known = await connection.execute(
                "SELECT 1 FROM public.transactions WHERE id = %s AND kind = %s", (asked.transaction_id, asked.kind)
            )
            if await known.fetchone() is None:
                return Written(known=False)
            found = await connection.execute(
                "SELECT request_digest FROM public.idempotency_keys WHERE key = %s", (asked.key,)
            )
            holder = await found.fetchone()
            if holder is None:  # deleted, or its transaction written, in between
                return await work(connection)
            return Written(known=True, holder=holder["request_digest"])

        return await self._database.run(work)

    async def write_many(self, batch: Sequence[Asked]) -> list[Written | None]:
        """Put requests into the outbox, in one transaction. ``None``: :meth:`write` tells what is with it.

        Raises:
            psycopg.Error: one of them cannot be written, or the connection broke.
            DatabaseUnavailable: they may or may not have been written.
        """

        async def work(connection: Connection) -> set[UUID]:
            return {row["id"] for row in await (await connection.execute(_WRITE, _columns(batch))).fetchall()}

        ids = await self._database.run(work, again=False)
        return [Written(known=True) if asked.request_id in ids else None for asked in batch]

    async def holder(self, key: str, kind: str, transaction_id: UUID) -> bytes | None:
        """The digest of the request that holds an Idempotency-Key, if the transaction is still there."""

        async def work(connection: Connection) -> bytes | None:
            found = await connection.execute(
                "SELECT request_digest FROM public.idempotency_keys WHERE key = %s "
                "AND EXISTS (SELECT FROM public.transactions WHERE id = %s AND kind = %s)",
                (key, transaction_id, kind),
            )
            row = await found.fetchone()
            return None if row is None else row["request_digest"]

        return await self._database.run(work)

    async def answers(self, request_ids: Sequence[UUID]) -> dict[UUID, Answer]:
        """The answers of those requests that the machine has decided, by their ids."""

        async def work(connection: Connection) -> dict[UUID, Answer]:
            rows = await connection.execute(_ANSWERS, ([str(id) for id in request_ids], _VERDICTS))
            return {
                row["request_id"]: Answer(
                    # To unpark what cannot be folded yet: it is refused, and says why.
                    Verdict.REJECTED if row["outcome"] == "PARKED" else Verdict(row["outcome"]),
                    row["reason"],
                    row["state"],
                    row["transport"],
                )
                for row in await rows.fetchall()
            }

        return await self._database.run(work)


def _columns(batch: Sequence[Asked]) -> dict[str, Any]:
    return {
        "request_id": [asked.request_id for asked in batch],
        "transaction_id": [asked.transaction_id for asked in batch],
        "kind": [asked.kind for asked in batch],
        "payload": [asked.payload for asked in batch],
        "traceparent": [asked.traceparent for asked in batch],
        "key": [asked.key for asked in batch],
        "digest": [asked.digest for asked in batch],
        "type": REQUEST_MADE,
        "topic": INPUT_TOPIC,
        "source": SOURCE,
        "content_type": AVRO,
    }
