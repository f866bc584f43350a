"""Where the instances of an HTTP service are: the static map, then a registry with Consul's catalog API.

What the registry says is believed when it says it plainly: a list of instances, or an empty one (or 404): the service
is gone. An error, a timeout, garbage, or a list of which nothing can be used is an outage of the registry, and what it
said before stays good until it answers again. A call that has instances from before waits for a slow registry only
``registry_patience_s``, unless none of them can be reached; the answer is used when it comes.
"""

import asyncio
import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import orjson
import structlog
from prometheus_client import Counter
from yarl import URL

from outbox_relay.addresses import Address, AddressRefused, forbidden, parse_host
from outbox_relay.settings import INSTANCE_LIMIT, DirectorySettings
from schemas import FluxoraError

log = structlog.get_logger(__name__)

#: Characters of a service's name; a longer one is not asked for.
NAME_LIMIT = 255

QUESTIONS = Counter("fluxora_directory_questions_total", "Questions to the service registry", ["answer"])


class UnknownService(FluxoraError):
    """There is no instance: neither in the map nor, by its own word, in the registry."""


class DirectoryUnavailable(FluxoraError):
    """The registry cannot say now, and named no instance before."""


@dataclass(slots=True)
class _Entry:
    """What the registry said of one service."""

    #: None: it has never said anything.
    instances: tuple[Address, ...] | None = None
    #: When to ask again; monotonic.
    due: float = 0.0
    #: The question under way, and when it began.
    asking: asyncio.Task[None] | None = None
    asked_at: float = 0.0
    #: Why there is no newer answer.
    trouble: str | None = None


@dataclass(slots=True)
class _Turn:
    """Round robin over the instances of one service."""

    count: int = field(default=0)

    def next(self, instances: Sequence[Address]) -> Address:
        self.count += 1
        return instances[(self.count - 1) % len(instances)]


class Directory:
    """Finds instances. Belongs to one event loop; ``async with``, or ``close`` it."""

    def __init__(self, settings: DirectorySettings) -> None:
        self._settings = settings
        self._map = settings.static_map
        #: Least used first.
        self._entries: dict[str, _Entry] = {}
        self._turns: dict[str, _Turn] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        asking = [entry.asking for entry in self._entries.values() if entry.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def instances(self, name: str, tried: Collection[Address] = ()) -> tuple[Address, ...]:
        """Return the base addresses of a service, at least one.

        Args:
            tried: could not be reached: who has no others to go by waits for the registry.

        Raises:
            UnknownService: there is none.
            DirectoryUnavailable: the registry does not answer, and named none before.
        """
        if (fixed := self._map.get(name)) is not None:
            return fixed
        if self._settings.service_registry_url is None:
            raise UnknownService(
                f"the service {name!r} is not in FLUXORA_SERVICE_MAP, and there is no registry (SERVICE_REGISTRY_URL)"
            )
        if not _is_name(name):
            raise UnknownService(f"{name[:60]!r} cannot be the name of a service in the registry")
        entry = await self._current(name, tried)
        # That there was none before the outage says little: services come.
        if not entry.instances and (entry.instances is None or entry.trouble is not None):
            raise DirectoryUnavailable(f"the service registry cannot say where {name!r} is: {entry.trouble}")
        if not entry.instances:
            raise UnknownService(f"the service registry has no instance of {name!r}")
        return entry.instances

    async def choose(self, name: str) -> Address:
        """Return the next instance in turn. Raises as :meth:`instances`."""
        return self._turn(name).next(await self.instances(name))

    async def another(self, name: str, tried: Collection[Address]) -> Address | None:
        """Return an instance that is none of ``tried``, which could not be reached; None if there is none.

        The registry is asked again, though not more often than of a service of which it knows none: an instance that
        was started anew may be elsewhere by now. Raises as :meth:`instances`.
        """
        if (entry := self._entries.get(name)) is not None:
            entry.due = min(entry.due, entry.asked_at + self._settings.registry_negative_ttl_s)
        others = [one for one in await self.instances(name, tried) if one not in tried]
        # Not a turn of its own: with two instances every call would begin with the same one.
        return others[self._turn(name).count % len(others)] if others else None

    def _turn(self, name: str) -> _Turn:
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = _Turn()
        return turn

    async def known(self, name: str) -> bool | None:
        """Whether there is an instance; None if the registry cannot say."""
        try:
            await self.instances(name)
        except UnknownService:
            return False
        except DirectoryUnavailable:
            return None
        return True

    async def _current(self, name: str, tried: Collection[Address]) -> _Entry:
        """What is known of the service, asked for anew when it is old. One question a name at a time."""
        entry = self._entries.pop(name, None) or _Entry()
        self._entries[name] = entry
        self._tidy()
        now = time.monotonic()
        if entry.asking is None and now >= entry.due:
            entry.asked_at = now
            entry.asking = asyncio.create_task(self._ask(name, entry), name=f"directory {name}")
            entry.asking.add_done_callback(functools.partial(_asked, entry))
        if entry.asking is not None:
            # Whoever has nothing to go by waits for the answer, which is bounded by the registry's timeout.
            others = any(one not in tried for one in entry.instances or ())
            patience = entry.asked_at + self._settings.registry_patience_s - now if others else None
            if patience is None or patience > 0:
                await asyncio.wait([entry.asking], timeout=patience)
        return entry

    def _tidy(self) -> None:
        while len(self._entries) > self._settings.registry_max_services:
            name = next(iter(self._entries))
            del self._entries[name]
            self._turns.pop(name, None)

    async def _ask(self, name: str, entry: _Entry) -> None:
        settings = self._settings
        try:
            entry.instances = await self._question(name)
            entry.trouble = None
            QUESTIONS.labels("found" if entry.instances else "none").inc()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            entry.trouble = f"{type(error).__name__}: {error}"[:300]
            QUESTIONS.labels("failed").inc()
            log.warning("registry_failed", service=name, error=entry.trouble, stale=bool(entry.instances))
        lifetime = (
            settings.registry_ttl_s if entry.instances and not entry.trouble else settings.registry_negative_ttl_s
        )
        entry.due = time.monotonic() + lifetime

    async def _question(self, name: str) -> tuple[Address, ...]:
        url = f"{self._settings.service_registry_url}/v1/catalog/service/{quote(name, safe='')}"
        async with self._http().get(URL(url, encoded=True), allow_redirects=False) as response:
            if response.status == 404:
                return ()
            if response.status != 200:
                raise ValueError(f"the registry answered {response.status}")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._settings.registry_max_bytes:
                    raise ValueError(f"the registry's answer is over {self._settings.registry_max_bytes} bytes")
        return instances_from(name, body)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._settings.registry_connections),
                timeout=aiohttp.ClientTimeout(total=self._settings.registry_timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session


def _asked(entry: _Entry, task: asyncio.Task[None]) -> None:
    entry.asking = None
    if not task.cancelled():
        task.result()  # an error that _ask does not know is a bug: the loop's handler tells it


def instances_from(name: str, body: bytes) -> tuple[Address, ...]:
    """Read the answer of ``/v1/catalog/service/…``; entries that cannot be used are left out and told in the log.

    Raises:
        ValueError: not a JSON list, or none of its entries can be used.
    """
    catalog = orjson.loads(body)
    if not isinstance(catalog, list):
        raise ValueError("the registry's answer is not a JSON list")
    found: dict[Address, None] = {}
    wrong: list[str] = []
    for one in catalog[:INSTANCE_LIMIT]:
        try:
            found[_instance(one)] = None
        except (ValueError, AddressRefused) as error:
            wrong.append(str(error))
    if wrong or len(catalog) > INSTANCE_LIMIT:
        over = max(0, len(catalog) - INSTANCE_LIMIT)
        log.warning("registry_entries_ignored", service=name, unusable=len(wrong), over_limit=over, errors=wrong[:3])
    if catalog and not found:
        raise ValueError(f"none of the registry's {len(catalog)} entries can be used: {wrong[0]}")
    # In an order of our own, so that the turns go on when the registry shuffles them.
    return tuple(sorted(found, key=lambda address: (address.host, address.port)))


def _instance(one: Any) -> Address:
    if not isinstance(one, dict):
        raise ValueError("an entry is not an object")
    # Consul: the service has the address of its node unless it has one of its own.
    host = one.get("ServiceAddress") or one.get("Address")
    if not isinstance(host, str):
        raise ValueError(f"ServiceAddress is {host!r}"[:200])
    port = one.get("ServicePort")
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) < 6:
        port = int(port)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ValueError(f"ServicePort is {port!r}"[:200])
    host = parse_host(host)
    # A registry may lie, too.
    if why := forbidden(host):
        raise AddressRefused(why)
    return Address("http", host, port)


def _is_name(name: str) -> bool:
    return 0 < len(name) <= NAME_LIMIT and name.isprintable() and name not in (".", "..")
