"""Which destinations were ever reached over HTTP: they never become topics by themselves.

A registry that has just started says of every service that there is none, and most HTTP services have a topic too, for
commands. So a name is written down before the first message goes to its instance, for all replicas and for good; from
then on no instance means that it is not there now.
"""

import time

from web.database import Connection, Database

#: Seconds for which a name that was written is taken to be there still.
_WRITTEN_S = 60.0

#: In the statements that take a message for a topic; with the parameter ``routed_to``.
USED_HTTP = "EXISTS (SELECT 1 FROM messages.http_destinations WHERE name = %(routed_to)s)"


class HttpDestinations:
    """Belongs to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Until when names need not be written again, monotonic. Not for ever, and never asked whether a name is
        #: there: a person may have deleted it.
        self._written: dict[str, float] = {}

    async def remember(self, name: str) -> None:
        """Returns when the name is durable. Raises DatabaseUnavailable."""
        if time.monotonic() < self._written.get(name, 0.0):
            return

        async def work(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO messages.http_destinations (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,)
            )

        await self._database.run(work)
        self._written[name] = time.monotonic() + _WRITTEN_S

    async def has(self, name: str) -> bool:
        """Raises DatabaseUnavailable."""
        self._written.pop(name, None)

        async def work(connection: Connection) -> bool:
            found = await connection.execute(f"SELECT {USED_HTTP} AS used", {"routed_to": name})
            row = await found.fetchone()
            return row is not None and bool(row["used"])

        return await self._database.run(work)
