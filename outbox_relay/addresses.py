"""Which addresses may be called: a rule on the text of a URL, and one on what its host resolves to.

A URL in a request is dangerous input: it makes this machine, inside the network, talk to whatever it names (SSRF,
CWE-918). So a host must be on the allow-list, there is one spelling of an address and no other is read, and some
addresses are refused whoever names them: a cloud's metadata service hands out credentials without being asked for any.
"""

import asyncio
import functools
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from schemas import FluxoraError

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Characters of a URL.
URL_LIMIT = 2_000
#: Where the allow-list comes from: named in the messages, so that the reader knows what to change.
SETTING = "FLUXORA_ALLOWED_HOSTS"
_PORTS = {"http": 80, "https": 443}


class AddressRefused(FluxoraError):
    """The address may not be called; the message names the rule."""


class Unresolvable(FluxoraError):
    """The host's name cannot be turned into addresses now."""


@dataclass(frozen=True, slots=True)
class Address:
    """A checked URL in its one spelling: host in lower case without a final dot, an IP address in canonical form."""

    scheme: str
    host: str
    port: int
    #: With its leading slash, as it was written; the query belongs to it. Empty if there was none.
    path: str = ""

    @property
    def authority(self) -> str:
        """The Host header: the port only where it is not the scheme's own (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def ip(self) -> Ip | None:
        """The host, if it is an address and not a name."""
        return _ip(self.host)

    def join(self, endpoint: str) -> Self:
        """The address of a path at this one, with or without its leading slash.

        Raises:
            AddressRefused: the path holds something other than printable ASCII, a ``#``, or dot segments.
        """
        path = f"{self.path.rstrip('/')}/{endpoint.removeprefix('/')}"
        return type(self)(self.scheme, self.host, self.port, check_path(path))


# ── The text ───────────────────────────────────────────────────────────────────────────────────────────────

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
#: A host that ends so is read as a number by many resolvers: 127.1, 0x7f.1, 2130706433, 0177.0.0.1 (WHATWG URL, 3.5).
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def parse_url(text: str) -> Address:
    """Read an absolute URL. Whether its host may be called is the allow-list's business.

    Raises:
        AddressRefused: not a plain http(s) URL with a host in its usual spelling; the message names the rule.
    """
    if len(text) > URL_LIMIT:
        raise AddressRefused(f"the URL has {len(text)} characters; {URL_LIMIT} may be")
    # Before anything is cut out of it: readers of URLs differ in what they drop (tabs, line ends) and turn around (\).
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise AddressRefused(
            "a URL holds printable ASCII without blanks and backslashes; "
            "write other characters of a name in punycode (xn--…), of a path as %XX"
        )
    parts = _URL.fullmatch(text)
    if parts is None:
        raise AddressRefused("not an absolute URL: write http://host[:port][/path] or https://…")
    scheme = parts["scheme"].lower()
    if scheme not in _PORTS:
        raise AddressRefused(f"the scheme {scheme[:40]!r} is refused: only http and https are called")
    if "@" in parts["authority"]:
        raise AddressRefused("user information (user:password@) is refused: credentials do not belong in a URL")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise AddressRefused("after // comes host or host:port, the port a number; an IPv6 address stands in brackets")
    port = _port(authority["port"]) if authority["port"] is not None else _PORTS[scheme]
    rest = parts["rest"]
    return Address(scheme, parse_host(authority["host"]), port, check_path(rest) if rest else "")


def parse_host(text: str) -> str:
    """Return a host's one spelling; an IPv6 address may stand in brackets.

    Raises:
        AddressRefused: neither a domain name nor an IP address in its usual spelling.
    """
    host = text.lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise AddressRefused(f"the host {text[:60]!r}: only an IPv6 address stands in brackets")
    if ":" in host:
        if "%" in host:
            raise AddressRefused(f"the host {text[:60]!r}: an address with a zone (%) is link-local, which is refused")
        ip = _ip(host)
        if ip is None:
            raise AddressRefused(f"the host {text[:60]!r} is no IPv6 address")
        return str(ip)
    host = host.removesuffix(".")
    if _NUMBER.fullmatch(host):
        if (ip := _ip(host)) is None:
            raise AddressRefused(
                f"the host {text[:60]!r}: an IPv4 address is written as four decimal numbers without leading zeros"
            )
        return str(ip)
    if not _NAME.fullmatch(host):
        raise AddressRefused(f"the host {text[:60]!r} is no domain name")
    return host


def check_path(path: str) -> str:
    """Return ``path``, which may have a query.

    Raises:
        AddressRefused: a fragment, dot segments, or something other than printable ASCII.
    """
    if len(path) > URL_LIMIT:
        raise AddressRefused(f"the path has {len(path)} characters; {URL_LIMIT} may be")
    if not path.isascii() or not path.isprintable() or " " in path or "\\" in path:
        raise AddressRefused("a path holds printable ASCII without blanks and backslashes; write others as %XX")
    if "#" in path:
        raise AddressRefused("a fragment (#…) is refused: it is never sent, so it cannot mean anything here")
    segments = path.partition("?")[0].lower().replace("%2e", ".").split("/")
    if "." in segments or ".." in segments:
        raise AddressRefused("dot segments (/../) are refused: write the path that is meant")
    return path


def _port(text: str) -> int:
    if not 0 < int(text) < 65536:
        raise AddressRefused(f"the port {text} is refused: a port is between 1 and 65535")
    return int(text)


def _ip(text: str) -> Ip | None:
    """An address, an IPv4 one in IPv6's clothes (``::ffff:127.0.0.1``) as what the system will connect to."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


# ── What is never called ───────────────────────────────────────────────────────────────────────────────────

#: Services of clouds that answer any process of the machine, by name: link-local addresses need none.
_METADATA_NAMES = frozenset(
    {"metadata.google.internal", "metadata.goog", "metadata", "instance-data", "instance-data.ec2.internal"}
)
_NEVER: tuple[tuple[str, Network], ...] = tuple(
    (what, ipaddress.ip_network(network))
    for what, networks in {
        "metadata": (
            "169.254.169.254",  # AWS, Azure, Google and most others
            "169.254.170.2",  # credentials of AWS ECS tasks
            "fd00:ec2::/32",  # AWS over IPv6, fd00:ec2::254 and its siblings
            "fd20:ce::254",  # Google over IPv6
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle Cloud, first generation
            "168.63.129.16",  # Azure's host
        ),
        "link-local": ("169.254.0.0/16", "fe80::/10"),
        # Linux connects to this machine for the whole of 0.0.0.0/8's first address and for ::.
        "unspecified": ("0.0.0.0/8", "::/128"),
        "multicast": ("224.0.0.0/4", "ff00::/8"),
        "reserved or broadcast": ("240.0.0.0/4",),
        # Site-local, deprecated by RFC 3879: nothing that is called has one.
        "site-local": ("fec0::/10",),
    }.items()
    for network in networks
)
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
#: IPv6 networks whose addresses hold an IPv4 address that a gateway may deliver to: first bit of it from the right.
_EMBEDDING: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::/96"), 0),  # IPv4-compatible, deprecated
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of one's own, RFC 8215, with a prefix of 96 bits
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
    (IPv6Network("2001::/32"), 64),  # Teredo, RFC 4380: the server
)
_TEREDO = IPv6Network("2001::/32")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def forbidden(host: str) -> str | None:
    """Say why nobody may call this host, however it is configured; None if that depends on the allow-list."""
    if host in _METADATA_NAMES:
        return f"{host} is the metadata service of a cloud"
    ip = _ip(host)
    if ip is None:
        return None
    for meant in _meant(ip):
        for what, network in _NEVER:
            if meant.version == network.version and meant in network:
                within = "" if meant == ip else f", which holds {meant}"
                return f"{ip}{within} is a {what} address"
        if meant != ip and _is_loopback(meant):
            return f"{ip} holds the loopback address {meant}"
    return None


def _meant(ip: Ip) -> Iterator[Ip]:
    """The address, and those of IPv4 that it wraps."""
    yield ip
    if not isinstance(ip, IPv6Address):
        return
    # ::1 is loopback, and not 0.0.0.1 in IPv6's clothes.
    if int(ip) > 1:
        for network, shift in _EMBEDDING:
            if ip in network:
                yield IPv4Address((int(ip) >> shift) & 0xFFFF_FFFF)
    if ip in _TEREDO:
        yield IPv4Address(~int(ip) & 0xFFFF_FFFF)
    if (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(int(ip) & 0xFFFF_FFFF)


def _is_loopback(ip: Ip) -> bool:
    return any(ip.version == network.version and ip in network for network in _LOOPBACK)


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


# ── The allow-list ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry: a network, a name, or with ``suffix`` all names below one; any port, or one."""

    network: Network | None = None
    name: str = ""
    suffix: bool = False
    port: int | None = None

    def covers(self, host: str, ip: Ip | None, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if ip is not None:
            return self.network is not None and ip.version == self.network.version and ip in self.network
        if self.network is not None:
            return False
        return host.endswith(f".{self.name}") if self.suffix else host == self.name


@dataclass(frozen=True, slots=True)
class AllowList:
    """The hosts that a URL in a request may name. Empty: none, only what the service registry or the map names."""

    entries: tuple[_Entry, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read entries separated by commas: ``name``, ``name:port``, ``*.suffix``, ``10.1.0.0/16``, ``[::1]:80``.

        A name is compared as it is written in the URL; a network covers addresses, never names: what a name
        resolves to is only known when it is called.

        Raises:
            ValueError: names the entry that is wrong.
        """
        return cls(tuple(_entry(word.strip()) for word in text.split(",") if word.strip()))

    def covers(self, host: str, port: int) -> bool:
        """Whether a URL may name this host, in its one spelling, and port."""
        ip = _ip(host)
        return any(entry.covers(host, ip, port) for entry in self.entries)


def _entry(word: str) -> _Entry:
    try:
        if "/" in word:
            return _Entry(network=ipaddress.ip_network(word, strict=True))
        if (ip := _ip(word)) is not None:
            return _Entry(network=ipaddress.ip_network(ip))
        suffix = word.startswith("*.")
        parts = _AUTHORITY.fullmatch(word[2:] if suffix else word)
        if parts is None:
            raise AddressRefused("it is none of name, name:port, *.suffix, address, network/bits")
        host = parse_host(parts["host"])
        port = None if parts["port"] is None else _port(parts["port"])
        ip = _ip(host)
        if ip is not None and suffix:
            raise AddressRefused("*. stands before a name")
        return _Entry(None if ip is None else ipaddress.ip_network(ip), "" if ip is not None else host, suffix, port)
    except (ValueError, AddressRefused) as error:
        raise ValueError(f"{SETTING}: the entry {word[:100]!r}: {error}") from None


# ── The two checks ─────────────────────────────────────────────────────────────────────────────────────────


def check_url(text: str, allowed: AllowList) -> Address:
    """Read a URL of a request and check it against the rules, as far as its text tells. Pure.

    Raises:
        AddressRefused: the message names the rule and what to change.
    """
    address = parse_url(text)
    if why := forbidden(address.host):
        raise AddressRefused(f"{why}: it is refused whatever the allow-list says")
    if not allowed.covers(address.host, address.port):
        raise AddressRefused(
            f"{address.host}:{address.port} is not on the allow-list: call the service by its name in the service "
            f"registry, or have the operator add it to {SETTING}"
        )
    return address


def check_service_url(text: str, allowed: AllowList) -> Address:
    """As :func:`check_url`, for a URL that endpoints are appended to: it has no query."""
    address = check_url(text, allowed)
    if "?" in address.path:
        raise AddressRefused("a service_url has no query (?…): endpoints are appended to it")
    return address


def is_absolute(endpoint: str) -> bool:
    """Whether an endpoint is a URL of its own and not a path at its service."""
    return _URL.fullmatch(endpoint) is not None


Lookup = Callable[[str], list[str]]


def system_lookup(name: str) -> list[str]:
    """Ask the system's resolver; blocks. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Resolver:
    """Turns checked addresses into the IP addresses to connect to: all of them checked, or none is used.

    The caller connects to exactly what is returned, so a name that changes its address afterwards (DNS rebinding)
    gains nothing. Answers are kept for ``ttl_s``. One lookup a name is under way at a time, and ``lookups`` at most
    in all, each on a thread of its own: a name server that hangs holds up only the names it is asked for.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 5.0,
        timeout_s: float = 3.0,
        lookups: int = 32,
        max_names: int = 10_000,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._lookups = lookups
        self._max_names = max_names
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(lookups, thread_name_prefix="dns")
        self._under_way: dict[str, asyncio.Future[list[str]]] = {}
        #: Oldest first.
        self._answers: dict[str, tuple[float, tuple[Ip, ...]]] = {}

    def close(self) -> None:
        """Lookups under way are left to their threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, address: Address, allowed: AllowList | None) -> tuple[Ip, ...]:
        """Return the addresses of the host, in the system's order.

        Args:
            allowed: the allow-list, which the text has passed; None for what the registry or the map names, which is
                trusted but for the addresses that nobody may call.

        Raises:
            AddressRefused: one of the addresses may not be called.
            Unresolvable: no answer, none in time, or too many lookups are under way.
        """
        literal = address.ip
        ips = (literal,) if literal is not None else await self._ask(address.host)
        for ip in ips:
            if why := forbidden(str(ip)) or forbidden(address.host):
                via = "" if literal is not None else f"{address.host} resolves to {ip}: "
                raise AddressRefused(f"{via}{why}: it is refused whatever the allow-list says")
            # A name on the allow-list stands for machines elsewhere; that it points here must be meant.
            if allowed is not None and _is_loopback(ip) and not self._loopback_meant(address, ip, allowed):
                raise AddressRefused(
                    f"{address.host} resolves to the loopback address {ip}, which is not on the allow-list {SETTING}"
                )
        return ips

    @staticmethod
    def _loopback_meant(address: Address, ip: Ip, allowed: AllowList) -> bool:
        return _is_localhost(address.host) or allowed.covers(str(ip), address.port)

    async def _ask(self, name: str) -> tuple[Ip, ...]:
        known = self._answers.get(name)
        if known is not None and time.monotonic() - known[0] < self._ttl_s:
            return known[1]
        asked = self._under_way.get(name)
        if asked is None:
            # A lookup cannot be cancelled: those that hang keep their thread, and more may not queue behind them.
            if len(self._under_way) >= self._lookups:
                raise Unresolvable(f"{name}: {self._lookups} DNS lookups are under way; the name server is slow")
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, name)
            self._under_way[name] = asked
            asked.add_done_callback(functools.partial(self._forget, name))
        try:
            answer = await _within(asyncio.shield(asked), self._timeout_s)
        except TimeoutError:
            raise Unresolvable(f"{name}: no answer of DNS within {self._timeout_s:g} s") from None
        except (OSError, UnicodeError) as error:
            raise Unresolvable(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        ips = tuple(ip for text in answer if (ip := _ip(text.partition("%")[0])) is not None)
        if not ips:
            raise Unresolvable(f"{name} has no address")
        self._answers.pop(name, None)
        self._answers[name] = (time.monotonic(), ips)
        while len(self._answers) > self._max_names:
            del self._answers[next(iter(self._answers))]
        return ips

    def _forget(self, name: str, asked: asyncio.Future[list[str]]) -> None:
        self._under_way.pop(name, None)
        if not asked.cancelled():
            asked.exception()  # it may have come when nobody waited any more


async def _within(awaited: Awaitable[list[str]], seconds: float) -> list[str]:
    async with asyncio.timeout(seconds):
        return await awaited
