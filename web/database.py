"""PostgreSQL as the REST processes see it: a bounded pool, and no wait without a limit.

psycopg's own async pool rather than SQLAlchemy's async engine: the statements are few and fixed, one creation
is one round trip in autocommit, and the greenlet between the two would be a good part of its cost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
import psycopg
import structlog
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from schemas import FluxoraError
from web.settings import RestSettings

log = structlog.get_logger()

_T = TypeVar("_T")
Connection = AsyncConnection[dict[str, Any]]


class DatabaseUnavailable(FluxoraError):
    """PostgreSQL does not answer in time. What was to be written may, or may not, have been."""


class Database:
    """Connections in autocommit, rows as mappings. Belongs to one event loop."""

    def __init__(self, settings: RestSettings, application_name: str) -> None:
        self._timeout = settings.pool_wait_seconds + settings.statement_timeout_seconds + 1.0
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            settings.database_url,
            connection_class=AsyncConnection[dict[str, Any]],
            kwargs=connect_arguments(settings, application_name),
            configure=_configure,
            min_size=min(4, settings.pool_size),
            max_size=settings.pool_size,
            timeout=settings.pool_wait_seconds,
            max_waiting=settings.pool_queue,
            # Its backoff doubles without a cap. Given up early, the next request that needs one tries anew.
            reconnect_timeout=1.0,
            open=False,
        )

    async def open(self) -> None:
        """Start connecting; does not wait, so the process starts while PostgreSQL is down."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=2.0)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return self._pool.get_stats().get("requests_waiting", 0)

    async def run(self, work: Callable[[Connection], Awaitable[_T]], *, again: bool = True) -> _T:
        """Do ``work`` on a connection, within the limit of time.

        Args:
            again: try once more when the connection turns out to have been dead in the pool.

        Raises:
            DatabaseUnavailable: no answer; whatever was sent may have been done.
            psycopg.Error: the statement itself is at fault, or (without ``again``) the connection broke.
        """
        task = asyncio.create_task(self._attempt(work, again))
        try:
            done, _ = await asyncio.wait((task,), timeout=self._timeout)
        except asyncio.CancelledError:
            self._abandon(task)
            raise
        if not done:
            # psycopg asks the server to cancel and waits for that too, which our caller need not.
            task.cancel()
            self._abandon(task)
            raise DatabaseUnavailable(f"PostgreSQL: no answer within {self._timeout:g} s")
        return task.result()

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        """Keep the task until it has ended; nobody asks for its result any more."""
        self._abandoned.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            self._abandoned.discard(task)
            if not task.cancelled():
                task.exception()

        task.add_done_callback(ended)

    async def _attempt(self, work: Callable[[Connection], Awaitable[_T]], again: bool) -> _T:
        for last in (False, True):
            dead = False
            try:
                async with self._pool.connection() as connection:
                    try:
                        return await work(connection)
                    except psycopg.OperationalError:
                        dead = connection.closed
                        raise
            except (PoolTimeout, TooManyRequests) as error:
                raise DatabaseUnavailable(f"PostgreSQL: {error}") from error
            except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as error:
                raise DatabaseUnavailable(
                    f"our tables are not there; run `fluxora init`: {error.diag.message_primary}"
                ) from error
            except (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege) as error:
                raise DatabaseUnavailable(f"PostgreSQL: {error.diag.message_primary}") from error
            except psycopg.OperationalError as error:
                if dead and not again:
                    raise
                if last or not dead:
                    raise DatabaseUnavailable(f"PostgreSQL: {error}") from error
                log.warning("connection lost, trying once more", error=str(error))
                await self._pool.check()  # the others of the same age are as dead
        raise AssertionError("unreachable")


def connect_arguments(settings: RestSettings, application_name: str) -> dict[str, Any]:
    """How every connection of the process is made: no wait without a limit, also when packets vanish."""
    return {
        "autocommit": True,
        "row_factory": dict_row,
        "connect_timeout": settings.connect_timeout_seconds,
        "application_name": application_name,
        "options": f"-c statement_timeout={int(settings.statement_timeout_seconds * 1000)}",
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": int(settings.statement_timeout_seconds * 1000) + 5000,
    }


async def _configure(connection: Connection) -> None:
    set_json_loads(orjson.loads, connection)
