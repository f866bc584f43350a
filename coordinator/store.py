"""The SQL of sagas: reading them. They are made by ``creation_store``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from coordinator import pruned
from coordinator.pruned import Pruned
from coordinator.views import SagaRow
from saga_processors.saga import SagaState
from web.database import Connection, Database

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
    #: Seconds since it was created.
    older_than: float | None = None
    younger_than: float | None = None
    needs_attention: bool | None = None
    #: Only what comes after this place, newest first.
    after: tuple[datetime, UUID] | None = None


class Store:
    """Reads and writes; every wait has a limit (``web.database``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, saga_id: UUID) -> SagaRow | None:
        async def work(connection: Connection) -> SagaRow | None:
            row = await (await connection.execute(_READ, (saga_id,))).fetchone()
            return None if row is None else _row(row)

        return await self._database.run(work)

    async def pruned(self, saga_id: UUID) -> Pruned | None:
        """How a saga ended that is no longer kept."""
        return await pruned.read(self._database, "saga", saga_id)

    async def read_ended(self, saga_ids: Sequence[UUID]) -> dict[UUID, SagaRow]:
        """Those of the sagas that have ended, by their ids."""

        async def work(connection: Connection) -> dict[UUID, SagaRow]:
            rows = await (await connection.execute(_READ_ENDED, (list(saga_ids),))).fetchall()
            return {row["id"]: _row(row) for row in rows}

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
            ("created_at < now() - make_interval(secs => %(older_than)s)", "older_than", wanted.older_than),
            ("created_at > now() - make_interval(secs => %(younger_than)s)", "younger_than", wanted.younger_than),
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


def _row(row: dict[str, Any]) -> SagaRow:
    row["state"] = SagaState(row["state"])
    return SagaRow(**row)
