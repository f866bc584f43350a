"""Counting what no processor has folded, on a real database: exact enough, and cheap beside a million others."""

import asyncio

import psycopg

from coordinator.backlog import Backlog
from coordinator.settings import Settings
from tests.integration.test_processor import database
from tests.platform import Platform
from web.database import Database

__all__ = ["database"]


def fill(database: str, kind: str, count: int, waiting: str) -> None:
    """``count`` transactions, of which those wait for which ``waiting`` holds; ``n`` is 1 for the oldest."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO transactions (id, kind, name, state, services, version, definition, created_at, updated_at) "
            f"SELECT gen_random_uuid(), %s, 's', 'STARTED', '{{}}', ({waiting})::bool::int # 1, '{{}}', "  # type: ignore[arg-type]
            "now() + n * interval '1 ms', now() FROM generate_series(1, %s) n",
            (kind, count),
        )


def backlog(database: str, enough: int) -> tuple[int, list[int]]:
    """What is counted, and how many rows were looked at each time."""
    looked: list[int] = []

    async def measure() -> int:
        settings = Settings(database_url=database, kafka_bootstrap_servers="x:1", schema_registry_url="http://x")
        pool = Database(settings, "test")
        await pool.open()
        counting = Backlog(pool, enough)
        newest = counting._newest

        async def noting(kind: str, count: int) -> tuple[int, int]:
            looked.append(count)
            return await newest(kind, count)

        counting._newest = noting  # type: ignore[method-assign]
        try:
            return await counting.measure()
        finally:
            await pool.close()

    return asyncio.run(measure()), looked


def test_where_nothing_waits_only_the_newest_are_looked_at(platform: Platform, database: str) -> None:
    fill(database, "saga", 5_000, "false")
    assert backlog(database, 1_000) == (0, [250, 250])


def test_all_that_wait_are_counted_of_both_kinds(platform: Platform, database: str) -> None:
    fill(database, "saga", 5_000, "n > 3_500")
    fill(database, "transaction", 100, "n > 60")
    assert backlog(database, 10_000)[0] == 1_540


def test_it_is_not_counted_further_than_matters(platform: Platform, database: str) -> None:
    fill(database, "saga", 20_000, "true")
    counted, looked = backlog(database, 500)
    assert counted >= 500
    assert max(looked) <= 4_000


def test_a_partition_that_is_ahead_of_the_others_hides_nothing(platform: Platform, database: str) -> None:
    fill(database, "saga", 6_000, "n %% 3 > 0 AND n > 1_000")
    assert 3_300 <= backlog(database, 10_000)[0] <= 3_334
