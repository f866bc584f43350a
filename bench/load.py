"""The order saga, started in the ways that users start one. Each step is a local transaction with a row of its own."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
from sqlalchemy import create_engine

from bench.ends import Ends
from bench.order import NAMES
from participant.sagas import NewSaga, Step, start_many
from participant.settings import sqlalchemy_url

#: Suffix of the database that the three services share.
ORDERS = "_orders"


class Load(Protocol):
    """Starts sagas. What it holds open stays open until it is left: its share of PostgreSQL's CPU is then counted."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, sagas: int, fail_every: int) -> list[str]:
        """Start sagas, every ``fail_every``-th (0: none) to be refused at its last step; returns their ids."""
        ...


class FromOutbox:
    """From a service's own transactions: the saga exists if, and only if, the service's transaction commits."""

    def __init__(self, endpoints: dict[str, str], *, connections: int = 8, per_transaction: int = 1) -> None:
        os.environ["SCHEMA_REGISTRY_URL"] = endpoints["SCHEMA_REGISTRY_URL"]
        self._connections = connections
        self._per_transaction = per_transaction
        self.engine = create_engine(sqlalchemy_url(endpoints["DATABASE_URL"] + ORDERS), pool_size=connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.dispose()

    def start(self, sagas: int, fail_every: int) -> list[str]:
        numbers = range(sagas)
        chunks = [numbers[i : i + self._per_transaction] for i in range(0, sagas, self._per_transaction)]
        return _flat(at_once(self._connections, lambda chunk: self.in_one(chunk, fail_every), chunks))

    def in_one(self, numbers: Sequence[int], fail_every: int = 0) -> list[str]:
        """Start those of these numbers in one transaction."""
        with self.engine.begin() as connection:
            new = [NewSaga("order", _steps(refused(i, fail_every))) for i in numbers]
            return [str(id) for id in start_many(connection, new)]


class OverRest:
    """One by one over REST; a closed loop of ``clients``, each of which waits for the answer, which says: durable.

    All of them in one event loop: what the clients cost, the machine under measurement lacks.
    """

    def __init__(self, endpoints: dict[str, str], *, clients: int = 32) -> None:
        self._clients = clients
        self._loop = asyncio.new_event_loop()
        self._http = self._loop.run_until_complete(self._connect(endpoints["COORDINATOR_URL"]))

    async def _connect(self, url: str) -> aiohttp.ClientSession:
        limits = aiohttp.TCPConnector(limit=self._clients)
        return aiohttp.ClientSession(url, connector=limits, timeout=aiohttp.ClientTimeout(total=30))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._http.close())
        self._loop.close()

    def start(self, sagas: int, fail_every: int) -> list[str]:
        return self._loop.run_until_complete(self._start(sagas, fail_every))

    async def _start(self, sagas: int, fail_every: int) -> list[str]:
        numbers, ids = iter(range(sagas)), list[str]()

        async def client() -> None:
            for i in numbers:
                ids.append(await self.post(refused(i, fail_every)))

        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(client())
        return ids

    async def post(self, refuse: bool) -> str:
        """Start one; returns its id."""
        status, _, id = await self.ask(refuse)
        if id is None:
            raise RuntimeError(f"POST /sagas was answered {status}")
        return id

    async def ask(self, refuse: bool = False) -> tuple[int, str | None, str | None]:
        """Ask for one; returns status, Retry-After, and its id if it was accepted."""
        steps = [
            {"name": s.name, "service_name": s.service_name, "command": "do", "payload": s.payload}
            for s in _steps(refuse)
        ]
        async with self._http.post("/sagas", json={"name": "order", "steps": steps}) as answer:
            told = await answer.json(content_type=None)
            id = str(told["saga_id"]) if answer.status == 201 else None
            return answer.status, answer.headers.get("Retry-After"), id

    def one(self, refuse: bool = False) -> str:
        """As ``post``, from outside of the loop."""
        return self._loop.run_until_complete(self.post(refuse))


class OverRestToEnd(OverRest):
    """As the peers' driver: each of ``clients`` waits for the END of its saga before it starts the next one."""

    def __init__(self, endpoints: dict[str, str], ends: Ends, *, clients: int = 64, limit_s: float = 60) -> None:
        super().__init__(endpoints, clients=clients)
        self._ends = ends
        self._limit_s = limit_s

    async def post(self, refuse: bool) -> str:
        id = await super().post(refuse)
        await self._ends.heard(id, self._limit_s)
        return id


def refused(i: int, fail_every: int) -> bool:
    """Whether the ``i``-th saga, from 0, is to be refused."""
    return fail_every > 0 and i % fail_every == fail_every - 1


def refusals(sagas: int, fail_every: int) -> int:
    """How many of them that makes."""
    return sagas // fail_every if fail_every else 0


def at_once(workers: int, one: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``[one(item) for item in items]`` by so many threads."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, items))


def at_times(workers: int, one: Callable[[float], Any], times: Iterator[float]) -> list[Any]:
    """An open loop: ``one(due)`` at each of ``times``, whether or not those before have ended.

    ``due`` is when it should begin, in seconds since 1970: with all workers busy it begins late, and whoever measures
    from ``due`` sees that (Gil Tene's "coordinated omission").
    """
    began, taking, results = time.time(), threading.Lock(), []

    def work(_: int) -> None:
        while True:
            with taking:
                after = next(times, None)
            if after is None:
                return
            due = began + after
            time.sleep(max(0.0, due - time.time()))
            result = one(due)
            with taking:
                results.append(result)

    at_once(workers, work, range(workers))
    return results


def _flat(lists: list[list[str]]) -> list[str]:
    return [id for one in lists for id in one]


def _steps(refuse: bool) -> list[Step]:
    return [Step(name, {"refuse": refuse and name == NAMES[-1]}, name=name, command="do") for name in NAMES]
