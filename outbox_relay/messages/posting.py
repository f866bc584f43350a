"""One HTTP attempt: POST a message to its receiver, bounded in time and in what is read of the answer."""

import asyncio
import email.utils
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from outbox_relay.addresses import Address, AddressRefused, Resolver, Unresolvable
from outbox_relay.command import traceparent_of

#: Bytes of an answer that are kept to say why it was not 2xx; no more is read.
_ANSWER_LIMIT = 400


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt came to."""

    #: None: there was no answer.
    status: int | None
    #: Why it does not count as delivered.
    error: str | None = None
    #: Seconds that the receiver asks to be left alone.
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def blames_destination(self) -> bool:
        """Whether other messages to it would fare the same: no answer, or an overloaded or broken receiver."""
        return self.status is None or self.status >= 500 or self.status == 429


class Poster:
    """Connections are kept and used again. Belongs to one event loop."""

    def __init__(self, timeout_seconds: float, connections: int) -> None:
        self._timeout = timeout_seconds
        self._connections = connections
        self._resolver = Resolver(timeout_s=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._resolver.close()

    async def post(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Never raises but for cancellation: an attempt that fails is an answer."""
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http().post(
                    URL(address.url, encoded=True), data=body, headers=headers, allow_redirects=False
                ) as response,
            ):
                if 200 <= response.status < 300:
                    return Answer(response.status)
                told = (await response.content.read(_ANSWER_LIMIT)).decode("utf-8", "replace")
                return Answer(
                    response.status,
                    f"{address.authority} answered {response.status}: {_plain(told)}".rstrip(": "),
                    retry_after(response.headers.get("Retry-After")),
                )
        except TimeoutError:
            return Answer(None, f"{address.authority} did not answer within {self._timeout:g} s")
        except (aiohttp.ClientError, AddressRefused, Unresolvable, OSError, ValueError) as error:
            return Answer(None, f"{address.authority}: {error or type(error).__name__}"[:_ANSWER_LIMIT])

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections,
                    resolver=_Checked(self._resolver),
                    use_dns_cache=False,  # the resolver has its own, of checked answers
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "fluxora-outbox-service", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session


class _Checked(AbstractResolver):
    """Lets aiohttp connect only to what was checked: a name that changes its address afterwards gains nothing."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(ip),
                port=port,
                family=socket.AF_INET6 if ip.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for ip in await self._resolver.resolve(Address("http", host, port), None)
        ]

    async def close(self) -> None:
        """The resolver belongs to the poster."""


def headers_of(
    message_id: str, *, type: str | None, key: str | None, traceparent: str | None, attempt: int
) -> dict[str, str]:
    """What a receiver is told beside the payload. ``Idempotency-Key`` is the same in all attempts."""
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": message_id,
        "Fluxora-Message-Id": message_id,
        "Fluxora-Attempt": str(attempt),
        "traceparent": traceparent or traceparent_of(message_id, message_id),
    }
    if type is not None:
        headers["Fluxora-Message-Type"] = type
    if key is not None:
        # A key is any text, a header is ASCII.
        headers["Fluxora-Message-Key"] = quote(key, safe="!#$&'()*+,/:;=?@[]^`{|}~ ")
    return headers


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
