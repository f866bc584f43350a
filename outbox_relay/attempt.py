"""One bounded HTTP attempt: one POST to one checked address, with limits on its time and on what comes back.

Redirects are not followed, proxies of the environment and cookies not used, compressed bodies not read (a few bytes of
gzip can hold gigabytes). The connection goes to exactly the IP address that was checked; the Host header and TLS keep
the name. Nothing is tried twice, but for the next address of a host when a connection was not even made.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Self
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from outbox_relay.addresses import Address, AddressRefused, AllowList, Ip, Resolver, Unresolvable
from outbox_relay.outcome import Answer, Called, Lost, NotSent
from participant.command import RESULT_LIMIT

#: Addresses of one host that are tried.
_ADDRESSES = 4
#: Bytes of the status line or of one header, and headers in all; more is not HTTP to us.
_HEADER_BYTES, _HEADERS = 16 << 10, 128
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """Times in seconds, sizes in bytes."""

    #: Linux sends a lost SYN again after 1 s and after 3 s: there is time for both.
    connect_s: float = 5.0
    #: Between two bytes of the answer, and before the first one.
    read_s: float = 30.0
    response_bytes: int = RESULT_LIMIT
    #: A connection idle for so long is not used again: the other side may be closing it, and a call that meets this
    #: is lost. Servers keep theirs for 2 s (gunicorn) and more.
    keep_alive_s: float = 1.0
    #: Connections to one address (IP and port) being opened at once. More of them overflow the queue of a service
    #: that accepts slowly (Python's http.server queues 5): its kernel drops them, and the calls are lost or late.
    opening: int = 16


class Caller:
    """Makes attempts. Belongs to one event loop; how many run at once is for whoever calls to bound, but for the
    connections that are being opened."""

    def __init__(self, resolver: Resolver, allowed: AllowList, limits: AttemptLimits | None = None) -> None:
        """``resolver`` stays the caller's; its addresses are checked by ``allowed``."""
        self._resolver = resolver
        self._allowed = allowed
        self._limits = limits or AttemptLimits()
        #: For each address that is being called.
        self._turns: WeakValueDictionary[tuple[str, int], asyncio.Semaphore] = WeakValueDictionary()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                keepalive_timeout=self._limits.keep_alive_s,
                ssl=ssl.create_default_context(),
                use_dns_cache=False,
            ),
            trace_configs=[_opened_in_turn()],
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            max_headers=_HEADERS,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "fluxora-relay"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Attempts under way are lost."""
        await self._session.close()

    async def post(
        self, address: Address, body: bytes, headers: Mapping[str, str], timeout_s: float, *, trusted: bool
    ) -> Called:
        """POST ``body``, which is JSON.

        Args:
            address: whose text has been checked.
            timeout_s: of the whole attempt, from the look-up of the name to the last byte.
            trusted: the address is the registry's or the map's and need not be on the allow-list.

        Never raises for what the network, the service or its address does; cancelling it loses the attempt.
        """
        progress = _Progress()
        try:
            async with asyncio.timeout(timeout_s):
                ips = await self._resolver.resolve(address, None if trusted else self._allowed)
                return await self._post(address, ips[:_ADDRESSES], body, headers, progress)
        except (AddressRefused, Unresolvable) as error:
            return NotSent(str(error))
        except TimeoutError:
            if not progress.connected:
                return NotSent(f"{address.authority}: no connection within {timeout_s:g} s")
            return Lost(f"{address.authority}: no whole answer within {timeout_s:g} s")

    async def _post(
        self, address: Address, ips: Sequence[Ip], body: bytes, headers: Mapping[str, str], progress: "_Progress"
    ) -> Called:
        refused = NotSent(f"{address.authority} has no address")
        for ip in ips:
            called = await self._post_to(address, ip, body, headers, progress)
            if not isinstance(called, NotSent):
                return called
            refused = called
        return refused

    async def _post_to(
        self, address: Address, ip: Ip, body: bytes, headers: Mapping[str, str], progress: "_Progress"
    ) -> Called:
        limits, where = self._limits, address.authority
        pinned = Address(address.scheme, str(ip), address.port, address.path or "/")
        progress.turns = self._turns.get((pinned.host, pinned.port)) or asyncio.Semaphore(limits.opening)
        self._turns[pinned.host, pinned.port] = progress.turns
        try:
            async with self._session.post(
                URL(pinned.url, encoded=True),
                data=body,
                headers={"Content-Type": "application/json", **headers, "Host": where},
                # Also separates, in the pool, the connections made for different names.
                server_hostname=address.host,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(sock_connect=limits.connect_s, sock_read=limits.read_s),
                trace_request_ctx=progress,
            ) as response:
                return await self._answer(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = f"{where}: {_why(error, limits)}"
            return Lost(why) if progress.connected else NotSent(why)
        finally:
            progress.no_longer_opening()

    async def _answer(self, response: aiohttp.ClientResponse) -> Answer:
        """Read the body as far as it may go; leaving it unread closes the connection."""
        if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
            response.close()
            return Answer(response.status, problem=f"its body has the Content-Encoding {coding[:40]!r}, not asked for")
        limit = self._limits.response_bytes
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > limit:
                response.close()
                return Answer(response.status, problem=f"its body is over {limit} bytes")
        return Answer(response.status, bytes(body))


@dataclass(slots=True)
class _Progress:
    """How far an attempt has come: once there is a connection, TLS included, something may have been sent."""

    connected: bool = False
    #: Of those who open a connection to the address.
    turns: asyncio.Semaphore | None = None
    #: It has its turn.
    opening: bool = False

    async def its_turn(self) -> None:
        assert self.turns is not None
        await self.turns.acquire()
        self.opening = True

    def no_longer_opening(self) -> None:
        if self.opening and self.turns is not None:
            self.opening = False
            self.turns.release()


def _opened_in_turn() -> aiohttp.TraceConfig:
    async def opening(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        await context.trace_request_ctx.its_turn()

    async def connected(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.connected = True
        context.trace_request_ctx.no_longer_opening()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(opening)
    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    return trace


def _why(error: BaseException, limits: AttemptLimits) -> str:
    """Say in words of HTTP what the client library says in its own."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return f"no connection within {limits.connect_s:g} s"
        case aiohttp.SocketTimeoutError():
            return f"no byte for {limits.read_s:g} s"
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not accepted: {error.certificate_error}"
        case aiohttp.ClientConnectorError():
            return f"no connection: {os.strerror(error.os_error.errno) if error.os_error.errno else error.os_error}"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return f"its answer broke off: {error}"
        case aiohttp.ClientResponseError():
            return f"its answer is not HTTP: {error.message}"
    return f"{type(error).__name__}: {error}"
