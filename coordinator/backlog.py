"""How many transactions REST has written that no processor has folded: the lag of outbox, Debezium, Kafka and
processors together."""

from web.database import Connection, Database

# Those are the newest ones, so the table is looked at from its end, as deep as it takes and no deeper.
_NEWEST = """
    SELECT count(*) AS seen, count(*) FILTER (WHERE version = 0 AND NOT parked) AS waiting FROM (
        SELECT version, parked FROM public.transactions WHERE kind = %s ORDER BY created_at DESC, id DESC LIMIT %s
    ) newest
"""
_KINDS = ("saga", "transaction")
#: Looked at when nothing waits; then four times as many, while a fifth of those seen waits.
_FEWEST = 250


class Backlog:
    """Belongs to one event loop."""

    def __init__(self, database: Database, enough: int) -> None:
        """``enough``: more need not be counted."""
        self._database = database
        self._enough = enough

    async def measure(self) -> int:
        """Count them. Raises DatabaseUnavailable."""
        return sum([await self._of(kind) for kind in _KINDS])

    async def _of(self, kind: str) -> int:
        deep = _FEWEST
        while True:
            seen, waiting = await self._newest(kind, deep)
            # Twice, because partitions are folded side by side: those that wait stand between others.
            if seen < deep or waiting < deep // 5 or deep >= 2 * self._enough:
                return waiting
            deep *= 4

    async def _newest(self, kind: str, count: int) -> tuple[int, int]:
        async def work(connection: Connection) -> tuple[int, int]:
            row = await (await connection.execute(_NEWEST, (kind, count))).fetchone()
            assert row is not None
            return row["seen"], row["waiting"]

        return await self._database.run(work)
