"""The SQL of two-phase commits: reading them. They are made by ``creation_store``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from coordinator import pruned
from coordinator.pruned import Pruned
from coordinator.transaction_views import TransactionRow
from saga_processors.transaction import TransactionState
from web.database import Connection, Database

_COLUMNS = "id, state, definition, progress, needs_attention, parked, created_at, updated_at"
_READ = f"SELECT {_COLUMNS} FROM public.transactions WHERE id = ANY(%s) AND kind = 'transaction'"
_STATES = "SELECT id, state FROM public.transactions WHERE id = ANY(%s) AND kind = 'transaction'"


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    states: Sequence[TransactionState] = ()
    participant: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    #: Age, seconds, by the database's clock.
    older_than: float | None = None
    younger_than: float | None = None
    needs_attention: bool | None = None
    #: Only what comes after this place, newest first.
    after: tuple[datetime, UUID] | None = None


class TransactionStore:
    """Reads two-phase commits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, transaction_id: UUID) -> TransactionRow | None:
        return (await self.read_many([transaction_id])).get(transaction_id)

    async def pruned(self, transaction_id: UUID) -> Pruned | None:
        """How a transaction ended that is no longer kept."""
        return await pruned.read(self._database, "transaction", transaction_id)

    async def read_many(self, transaction_ids: Sequence[UUID]) -> dict[UUID, TransactionRow]:
        """Those that there are, by their ids."""

        async def work(connection: Connection) -> dict[UUID, TransactionRow]:
            rows = await (await connection.execute(_READ, (list(transaction_ids),))).fetchall()
            return {row["id"]: _row(row) for row in rows}

        return await self._database.run(work)

    async def states(self, transaction_ids: Sequence[UUID]) -> dict[UUID, TransactionState]:
        """The states of those that there are; costs less than reading them."""

        async def work(connection: Connection) -> dict[UUID, TransactionState]:
            rows = await (await connection.execute(_STATES, (list(transaction_ids),))).fetchall()
            return {row["id"]: TransactionState(row["state"]) for row in rows}

        return await self._database.run(work)

    async def parked(self, id: UUID, kind: str) -> bool | None:
        """Whether inputs of the transaction are queued; ``None``: there is none of this kind."""

        async def work(connection: Connection) -> bool | None:
            found = await connection.execute(
                "SELECT parked FROM public.transactions WHERE id = %s AND kind = %s", (id, kind)
            )
            row = await found.fetchone()
            return None if row is None else bool(row["parked"])

        return await self._database.run(work)

    async def page(self, wanted: TransactionFilter, limit: int) -> list[dict[str, Any]]:
        """Summaries of at most ``limit`` transactions, newest first, as columns."""
        conditions = ["kind = 'transaction'"]
        values: dict[str, Any] = {"limit": limit}
        for condition, name, value in (
            ("state = ANY(%(states)s)", "states", [state.value for state in wanted.states] or None),
            ("%(participant)s = ANY(services)", "participant", wanted.participant),
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
            "SELECT id, state, services, needs_attention, parked, created_at, updated_at "
            f"FROM public.transactions WHERE {' AND '.join(conditions)} "
            "ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
        )

        async def work(connection: Connection) -> list[dict[str, Any]]:
            # No preparation: every set of filters is another statement.
            return await (await connection.execute(statement, values, prepare=False)).fetchall()

        return await self._database.run(work)


def _row(row: dict[str, Any]) -> TransactionRow:
    row["state"] = TransactionState(row["state"])
    return TransactionRow(**row)
