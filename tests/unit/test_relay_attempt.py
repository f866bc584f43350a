"""One attempt against a real server that hangs, trickles, lies and dies."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outbox_relay.addresses import AllowList, Resolver, parse_url
from outbox_relay.attempt import AttemptLimits, Caller
from outbox_relay.outcome import Answer, Called, Lost, NotSent
from tests.unit import fix_http
from tests.unit.fix_http import RawServer, answer, die, hang, raw, reset

QUICK = AttemptLimits(connect_s=1.0, read_s=0.3, response_bytes=100_000, keep_alive_s=1.0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


async def trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(0.05)
        writer.write(b"x")
        await writer.drain()


async def flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


def call(
    says: fix_http.Answer,
    *,
    timeout_s: float = 2.0,
    limits: AttemptLimits = QUICK,
    path: str = "/pay",
    headers: dict[str, str] | None = None,
) -> tuple[Called, RawServer]:
    async def run() -> tuple[Called, RawServer]:
        resolver = Resolver()
        async with RawServer(says) as server, Caller(resolver, AllowList.parse("127.0.0.0/8"), limits) as caller:
            address = parse_url(server.url).join(path)
            called = await caller.post(address, b'{"a":1}', headers or {}, timeout_s, trusted=False)
        resolver.close()
        return called, server

    return asyncio.run(run())


def test_the_body_arrives_as_it_was_given_with_the_headers() -> None:
    called, server = call(answer(200, b'{"ok":true}'), path="/pay?x=%20y", headers={"Idempotency-Key": "k"})
    assert called == Answer(200, b'{"ok":true}')
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/pay?x=%20y", b'{"a":1}')
    assert request.headers == {
        "Host": f"127.0.0.1:{server.port}",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "fluxora-relay",
        "Content-Type": "application/json",
        "Content-Length": "7",
        "Idempotency-Key": "k",
    }


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 308, 404, 409, 500, 599])
def test_a_status_is_taken_as_it_is_and_a_redirect_not_followed(status: int) -> None:
    called, server = call(answer(status, b"" if status == 204 else b"x", Location="http://169.254.169.254/latest"))
    assert isinstance(called, Answer)
    assert called.status == status
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (hang, "no byte for 0.3 s"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-", hang), "no byte for 0.3 s"),
        (raw(HEAD, hang), "no byte for 0.3 s"),
        (raw(HEAD + b"half", hang), "no byte for 0.3 s"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 3, hang), "no "),
        (die, "closed the connection without an answer"),
        (reset, "127.0.0.1"),
        (raw(HEAD + b"half", die), "broke off"),
        (raw(HEAD + b"half", reset), "127.0.0.1"),
        (raw(b"hello?\r\n\r\n"), "not HTTP"),
        (raw(b"\x16\x03\x01\x02\x00\x01" * 10 + b"\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 abc OK\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"), "not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"), "127.0.0.1"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", die), "broke off"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", hang), "no byte"),
    ],
)
def test_an_answer_that_is_not_whole_leaves_the_call_unknown(says: fix_http.Answer, reason: str) -> None:
    began = time.monotonic()
    called, server = call(says)
    assert isinstance(called, Lost), called
    assert reason in called.reason
    assert time.monotonic() - began < 3
    assert len(server.requests) == 1, "never tried twice"


@pytest.mark.parametrize("begun", [HEAD, b"HTTP/1.1 200 OK\r\nX: "])
def test_an_answer_that_never_ends_is_given_up_after_its_time(begun: bytes) -> None:
    called, server = call(raw(begun, trickle), timeout_s=2, limits=replace(QUICK, read_s=30))
    assert isinstance(called, Lost), called
    assert "no whole answer within 2 s" in called.reason
    assert len(server.requests) == 1, "never tried twice"


@pytest.mark.parametrize(
    "says",
    [
        answer(200, b"x" * 10_000_000),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", flood),
        raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000, hang),
    ],
)
def test_a_body_over_the_limit_is_not_read_to_its_end(says: fix_http.Answer) -> None:
    called, _ = call(says)
    assert called == Answer(200, b"", "its body is over 100000 bytes")


def test_a_body_at_the_limit_is_whole() -> None:
    assert call(answer(200, b"x" * 100_000))[0] == Answer(200, b"x" * 100_000)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
def test_a_compressed_body_is_not_unpacked(coding: str) -> None:
    called, _ = call(answer(200, b"\x1f\x8b" + b"x" * 100, Content_Encoding=coding))
    assert isinstance(called, Answer)
    assert (called.status, called.body) == (200, b"")
    assert f"Content-Encoding {coding!r}" in (called.problem or "")


def test_cookies_are_not_kept() -> None:
    async def run() -> None:
        resolver = Resolver()
        async with (
            RawServer(answer(200, Set_Cookie="session=1")) as server,
            Caller(resolver, AllowList.parse("127.0.0.1"), QUICK) as caller,
        ):
            for _ in range(3):
                await caller.post(parse_url(server.url), b"{}", {}, 1, trusted=False)
        resolver.close()
        assert server.connections == 1, "connections are used again"
        assert all("Cookie" not in request.headers for request in server.requests)

    asyncio.run(run())


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert call(answer(200))[0] == Answer(200)


def post(
    url: str,
    lookup: Callable[[str], list[str]],
    *,
    allowed: str = "",
    trusted: bool = False,
    timeout_s: float = 1.0,
) -> Called:
    async def run() -> Called:
        resolver = Resolver(lookup=lookup)
        async with Caller(resolver, AllowList.parse(allowed), QUICK) as caller:
            called = await caller.post(parse_url(url), b"{}", {}, timeout_s, trusted=trusted)
        resolver.close()
        return called

    return asyncio.run(run())


def test_nothing_is_sent_to_a_port_where_nobody_listens() -> None:
    called = post("http://127.0.0.1:1", lambda name: [], trusted=True)
    assert called == NotSent("127.0.0.1:1: no connection: Connection refused")


def test_nothing_is_sent_when_the_name_does_not_resolve() -> None:
    def fails(name: str) -> list[str]:
        raise OSError(-2, "Name or service not known")

    assert post("http://orders", fails, trusted=True) == NotSent("orders: Name or service not known")


def test_nothing_is_sent_when_the_connection_does_not_come_about() -> None:
    with full_queue() as port:
        url = f"http://127.0.0.1:{port}"
        assert post(url, list, trusted=True, timeout_s=5.0) == NotSent(f"127.0.0.1:{port}: no connection within 1 s")
        assert post(url, list, trusted=True, timeout_s=0.1) == NotSent(f"127.0.0.1:{port}: no connection within 0.1 s")


def test_a_burst_of_calls_opens_a_few_connections_at_a_time_and_one_that_is_not_answered_holds_up_no_other() -> None:
    """The queue of the full address takes none: whoever opens there waits, and the rest behind it."""
    limits = AttemptLimits(connect_s=0.5, opening=2)

    async def run() -> tuple[list[Called], float, list[Called]]:
        resolver = Resolver()
        allowed = AllowList.parse("127.0.0.0/8")
        async with RawServer(answer(200, b"{}")) as quick, Caller(resolver, allowed, limits) as caller:
            with full_queue() as port:
                full = parse_url(f"http://127.0.0.1:{port}")
                hanging = [asyncio.create_task(caller.post(full, b"{}", {}, 20, trusted=True)) for _ in range(6)]
                began = time.monotonic()
                answered = [await caller.post(parse_url(quick.url), b"{}", {}, 20, trusted=True) for _ in range(3)]
                assert not any(task.done() for task in hanging)
                lost = await asyncio.gather(*hanging)
                took = time.monotonic() - began
        resolver.close()
        return answered, took, lost

    answered, took, lost = asyncio.run(run())
    assert answered == [Answer(200, b"{}")] * 3
    assert {type(one) for one in lost} == {NotSent}
    assert took > 3 * 0.5 * 0.9, "two at a time, half a second each"


def test_the_time_of_an_attempt_counts_while_it_waits_for_its_turn_to_connect() -> None:
    limits = AttemptLimits(connect_s=1.0, opening=1)

    async def run() -> Called:
        resolver = Resolver()
        async with Caller(resolver, AllowList.parse("127.0.0.0/8"), limits) as caller:
            with full_queue() as port:
                full = parse_url(f"http://127.0.0.1:{port}")
                first = asyncio.create_task(caller.post(full, b"{}", {}, 20, trusted=True))
                await asyncio.sleep(0)
                second = await caller.post(full, b"{}", {}, 0.2, trusted=True)
                assert not first.done()
                await first
                # Whoever gave up has left no turn behind: a third may open.
                third = await caller.post(full, b"{}", {}, 20, trusted=True)
                assert isinstance(third, NotSent) and "within 1 s" in third.reason
        resolver.close()
        return second

    second = asyncio.run(run())
    assert isinstance(second, NotSent)
    assert second.reason.endswith("no connection within 0.2 s")


@contextlib.contextmanager
def full_queue() -> Iterator[int]:
    """The port of a server that accepts nobody, and whose queue of connections is full: no answer to the next one."""
    with socket.socket() as server, contextlib.ExitStack() as fillers:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port: int = server.getsockname()[1]
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def test_the_call_goes_to_the_address_that_was_checked_and_the_name_stays_in_the_host_header() -> None:
    async def run() -> None:
        asked = []

        def lookup(name: str) -> list[str]:
            asked.append(name)
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.99"]

        resolver = Resolver(lookup=lookup)
        async with (
            RawServer(answer(200)) as server,
            Caller(resolver, AllowList.parse("orders.example,127.0.0.1"), QUICK) as caller,
        ):
            address = parse_url(f"http://orders.example:{server.port}/x")
            assert await caller.post(address, b"{}", {}, 1.0, trusted=False) == Answer(200)
        resolver.close()
        assert asked == ["orders.example"], "resolved once: a second answer is not asked for"
        assert server.requests[0].headers["Host"] == f"orders.example:{server.port}"

    asyncio.run(run())


@pytest.mark.parametrize("trusted", [False, True])
def test_a_name_that_points_to_the_metadata_service_is_not_called(trusted: bool) -> None:
    called = post(
        "http://orders", lambda name: ["127.0.0.1", "169.254.169.254"], allowed="orders,127.0.0.1", trusted=trusted
    )
    assert isinstance(called, NotSent)
    assert "169.254.169.254 is a metadata address" in called.reason


def test_the_next_address_is_tried_only_when_no_connection_was_made() -> None:
    async def run() -> None:
        async with RawServer(answer(200)) as server:
            resolver = Resolver(lookup=lambda name: ["127.0.0.2", "127.0.0.1"])
            async with Caller(resolver, AllowList(), QUICK) as caller:
                # Nobody listens at 127.0.0.2.
                address = parse_url(f"http://orders:{server.port}")
                assert await caller.post(address, b"{}", {}, 1.0, trusted=True) == Answer(200)
                server.says = reset
                assert isinstance(await caller.post(address, b"{}", {}, 1.0, trusted=True), Lost)
            resolver.close()
            assert len(server.requests) == 2

    asyncio.run(run())


def test_a_connection_made_for_one_name_is_not_used_for_another() -> None:
    async def run() -> None:
        resolver = Resolver(lookup=lambda name: ["127.0.0.1"])
        async with RawServer(answer(200)) as server, Caller(resolver, AllowList(), QUICK) as caller:
            for name in ("a", "b", "a"):
                await caller.post(parse_url(f"http://{name}:{server.port}"), b"{}", {}, 1.0, trusted=True)
            assert server.connections == 2
        resolver.close()

    asyncio.run(run())


def test_a_line_end_in_a_header_sends_nothing() -> None:
    called, server = call(answer(200), headers={"X": "a\r\nHost: evil"})
    assert isinstance(called, NotSent | Lost)
    assert not server.requests


def test_a_certificate_that_is_not_trusted_sends_nothing(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=orders.example", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    async def run() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        names: list[str | None] = []
        context.sni_callback = lambda sock, name, context: names.append(name)
        seen = []
        server = await asyncio.start_server(lambda reader, writer: seen.append(1), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        resolver = Resolver(lookup=lambda name: ["127.0.0.1"])
        async with Caller(resolver, AllowList(), QUICK) as caller:
            called = await caller.post(parse_url(f"https://orders.example:{port}"), b"{}", {}, 2.0, trusted=True)
            assert isinstance(called, NotSent)
            assert "certificate is not accepted" in called.reason
        assert names == ["orders.example"], "TLS keeps the name"
        resolver.close()
        server.close()
        await server.wait_closed()

    asyncio.run(run())
