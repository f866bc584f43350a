"""What is told of a transaction that was pruned (``saga_processors.retention``)."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from coordinator.requests import not_found
from coordinator.views import time
from web.database import Connection, Database
from web.problems import Problem

_READ = "SELECT state, ended_at FROM public.pruned_transactions WHERE id = %s AND kind = %s"


@dataclass(frozen=True, slots=True)
class Pruned:
    """That it was there, and how it ended."""

    state: str
    ended_at: datetime


async def read(database: Database, kind: str, id: UUID) -> Pruned | None:
    async def work(connection: Connection) -> Pruned | None:
        row = await (await connection.execute(_READ, (id, kind))).fetchone()
        return None if row is None else Pruned(row["state"], row["ended_at"])

    return await database.run(work)


def missing(kind: str, id: UUID, pruned: Pruned | None) -> Problem:
    """The 404 of a transaction without a row.

    One that was pruned has another ``type`` than one that is not known: of the latter a participant presumes the abort
    (``participant.sweep``).
    """
    if pruned is None:
        return not_found(kind, id)
    ended_at = time(pruned.ended_at)
    detail = f"The {kind} {id} has ended, {pruned.state}, at {ended_at}; it is no longer kept."
    return Problem(404, "pruned", detail, state=pruned.state, ended_at=ended_at)
