"""The SQL of registered definitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from web.database import Connection, Database

_COLUMNS = "id, name, version, document, created_at"
# clock_timestamp: two registrations in one moment are told apart by their ids.
_REGISTER = f"""
    INSERT INTO public.saga_definitions (id, name, version, document, created_at)
    VALUES (%s, %s, %s, %s::json, clock_timestamp())
    ON CONFLICT (name, version) DO NOTHING
    RETURNING {_COLUMNS}
"""
_READ = f"SELECT {_COLUMNS} FROM public.saga_definitions WHERE name = %s AND version = %s"
_NEWEST = f"SELECT {_COLUMNS} FROM public.saga_definitions WHERE name = %s ORDER BY created_at DESC, id DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class DefinitionRow:
    """A row of ``saga_definitions``; rows never change."""

    id: UUID
    name: str
    version: str
    document: dict[str, Any]
    created_at: datetime


class DefinitionStore:
    """Writes definitions once, and reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, name: str, version: str, document: Any) -> tuple[DefinitionRow, bool]:
        """Write a definition unless there is one of that name and version; returns the row, and whether it is new.

        Raises:
            DatabaseUnavailable: it may or may not have been written; it can be registered again.
        """
        id = uuid7()

        async def work(connection: Connection) -> tuple[DefinitionRow, bool]:
            written = await connection.execute(_REGISTER, (id, name, version, orjson.dumps(document).decode()))
            if (row := await written.fetchone()) is not None:
                return DefinitionRow(**row), True
            found = await (await connection.execute(_READ, (name, version))).fetchone()
            assert found is not None, "definitions are never deleted"
            # A first try may have committed before its connection broke.
            return DefinitionRow(**found), found["id"] == id

        return await self._database.run(work)

    async def read(self, name: str, version: str | None) -> DefinitionRow | None:
        """One version; ``None``: the one registered last."""

        async def work(connection: Connection) -> DefinitionRow | None:
            wanted = (_NEWEST, (name,)) if version is None else (_READ, (name, version))
            row = await (await connection.execute(*wanted)).fetchone()
            return None if row is None else DefinitionRow(**row)

        return await self._database.run(work)

    async def page(self, name: str | None, after: tuple[datetime, UUID] | None, limit: int) -> list[DefinitionRow]:
        """At most ``limit``, of one name or of all, the one registered last first."""
        conditions = ["true"]
        values: dict[str, Any] = {"limit": limit}
        if name is not None:
            conditions.append("name = %(name)s")
            values["name"] = name
        if after is not None:
            conditions.append("(created_at, id) < (%(after_time)s, %(after_id)s)")
            values["after_time"], values["after_id"] = after
        statement = (
            f"SELECT {_COLUMNS} FROM public.saga_definitions WHERE {' AND '.join(conditions)} "
            "ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
        )

        async def work(connection: Connection) -> list[DefinitionRow]:
            return [DefinitionRow(**row) for row in await (await connection.execute(statement, values)).fetchall()]

        return await self._database.run(work)

    async def names(self, limit: int) -> Sequence[str]:
        """Some of the names that are registered, in their order."""

        async def work(connection: Connection) -> Sequence[str]:
            rows = await connection.execute(
                "SELECT DISTINCT name FROM public.saga_definitions ORDER BY name LIMIT %s", (limit,)
            )
            return [row["name"] for row in await rows.fetchall()]

        return await self._database.run(work)
