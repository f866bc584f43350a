"""Finding instances, with a real registry server that does what registries do, and worse."""

import asyncio
import json
import time
from typing import Any

import pytest
from pydantic import ValidationError

from outbox_relay.directory import Directory, DirectoryUnavailable, UnknownService, instances_from
from outbox_relay.settings import DirectorySettings
from tests.unit.fix_http import Answer, RawServer, answer, die, hang, raw, reset


def catalog(*instances: tuple[Any, Any]) -> Answer:
    entries = [{"Node": "n", "Address": "10.9.9.9", "ServiceAddress": a, "ServicePort": p} for a, p in instances]
    return answer(200, json.dumps(entries).encode())


def settings(server: RawServer | None, **more: Any) -> DirectorySettings:
    quick = {
        "registry_ttl_s": 0.05,
        "registry_negative_ttl_s": 0.05,
        "registry_timeout_s": 2,
        "registry_patience_s": 5,
    }
    return DirectorySettings(service_registry_url=server.url if server else None, **{**quick, **more})


async def urls(directory: Directory, name: str = "orders") -> list[str]:
    return [address.url for address in await directory.instances(name)]


def test_instances_are_called_in_turn() -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.2", 81), ("10.0.0.1", 80))) as server,
            Directory(settings(server)) as directory,
        ):
            chosen = [(await directory.choose("orders")).url for _ in range(4)]
            assert chosen == ["http://10.0.0.1", "http://10.0.0.2:81"] * 2
            assert [request.target for request in server.requests] == ["/v1/catalog/service/orders"]

    asyncio.run(run())


def test_a_dead_instance_takes_no_more_than_its_turn() -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.1", 80), ("10.0.0.2", 80))) as server,
            Directory(settings(server)) as directory,
        ):
            first = []
            for _ in range(8):
                instance = await directory.choose("orders")
                first.append(instance.host)
                if instance.host == "10.0.0.1":
                    other = await directory.another("orders", [instance])
                    assert other is not None and other.host == "10.0.0.2"
                    assert await directory.another("orders", [instance, other]) is None
            assert first == ["10.0.0.1", "10.0.0.2"] * 4

    asyncio.run(run())


def test_the_registry_is_asked_again_where_an_instance_is_now() -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.1", 80))) as server,
            # Who has an instance to go by does not wait for the registry, and who has none left does.
            Directory(
                settings(
                    server,
                    registry_ttl_s=600,
                    registry_negative_ttl_s=0,
                    registry_patience_s=0,
                    registry_timeout_s=5,
                )
            ) as directory,
        ):
            gone = await directory.choose("orders")
            server.says = catalog(("10.0.0.7", 80))
            assert (await directory.choose("orders")) == gone
            now = await directory.another("orders", [gone])
            assert now is not None and now.host == "10.0.0.7"

    asyncio.run(run())


def test_an_answer_is_kept_for_its_time_and_then_asked_for_again() -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.1", 80))) as server,
            Directory(settings(server, registry_ttl_s=1)) as directory,
        ):
            for _ in range(50):
                await directory.instances("orders")
            assert len(server.requests) == 1
            server.says = catalog(("10.0.0.7", 80))
            await asyncio.sleep(1.01)
            assert await urls(directory) == ["http://10.0.0.7"]
            assert len(server.requests) == 2

    asyncio.run(run())


def test_many_who_ask_at_once_make_one_question() -> None:
    async def run() -> None:
        async with RawServer(catalog(("10.0.0.1", 80))) as server, Directory(settings(server)) as directory:
            await asyncio.gather(*(directory.instances("orders") for _ in range(200)))
            assert len(server.requests) == 1

    asyncio.run(run())


def test_a_service_that_the_registry_does_not_know_is_asked_for_once_a_while() -> None:
    for says in (answer(200, b"[]"), answer(404, b"no")):

        async def run(says: Answer = says) -> None:
            async with RawServer(says) as server, Directory(settings(server, registry_negative_ttl_s=1)) as directory:
                for _ in range(20):
                    with pytest.raises(UnknownService, match="no instance of 'orders'"):
                        await directory.instances("orders")
                assert await directory.known("orders") is False
                assert len(server.requests) == 1
                server.says = catalog(("10.0.0.1", 80))
                await asyncio.sleep(1.01)
                assert await directory.known("orders") is True

        asyncio.run(run())


def test_an_empty_list_of_a_registry_that_answers_means_the_service_is_gone() -> None:
    async def run() -> None:
        async with RawServer(catalog(("10.0.0.1", 80))) as server, Directory(settings(server)) as directory:
            assert await directory.known("orders") is True
            server.says = answer(200, b"[]")
            await asyncio.sleep(0.06)
            assert await directory.known("orders") is False

    asyncio.run(run())


OUTAGES: dict[str, Answer] = {
    "answers 500": answer(500, b"[]"),
    "answers 302": answer(302, b"", Location="http://10.0.0.5/"),
    "answers 200 with an error page": answer(200, b"<html>"),
    "answers an object": answer(200, b'{"ServiceAddress": "10.0.0.1", "ServicePort": 80}'),
    "answers null": answer(200, b"null"),
    "answers only nonsense": answer(200, b'[1, "x", null, {}, {"ServiceAddress": "::", "ServicePort": 0}]'),
    "is not HTTP": raw(b"\x16\x03\x01 what\r\n\r\n"),
    "hangs": hang,
    "hangs in mid-body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", hang),
    "dies in mid-body": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]", die),
    "closes": die,
    "resets": reset,
    "answers without an end": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"[" * 70_000),
    "answers gzip": answer(200, b"\x1f\x8b\x08\x00" + b"\x00" * 20, Content_Encoding="gzip"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_instances_outlive_a_registry_that(outage: str) -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.1", 80))) as server,
            Directory(settings(server, registry_max_bytes=65536, registry_patience_s=0.05)) as directory,
        ):
            await directory.instances("orders")
            server.says = OUTAGES[outage]
            for _ in range(5):
                await asyncio.sleep(0.06)
                began = time.monotonic()
                assert await urls(directory) == ["http://10.0.0.1"]
                assert time.monotonic() - began < 1.5, "who has instances does not wait for a slow registry"
            assert await directory.known("orders") is True
            assert await directory.known("payments") is None
            with pytest.raises(DirectoryUnavailable, match="cannot say where 'payments' is"):
                await directory.instances("payments")
            assert len(server.requests) > 1
            server.says = catalog(("10.0.0.3", 80))
            for _ in range(400):
                if (found := await urls(directory)) == ["http://10.0.0.3"]:
                    break
                await asyncio.sleep(0.05)
            assert found == ["http://10.0.0.3"], "it is believed again when it is back"

    asyncio.run(run())


def test_instances_outlive_a_registry_that_is_down() -> None:
    async def run() -> None:
        server = RawServer(catalog(("10.0.0.1", 80)))
        async with server:
            directory = Directory(settings(server))
            await directory.instances("orders")
        await asyncio.sleep(0.06)
        assert await urls(directory) == ["http://10.0.0.1"]
        assert await directory.known("orders") is True
        assert await directory.known("payments") is None
        await directory.close()

    asyncio.run(run())


def test_that_there_was_none_before_an_outage_is_not_held_against_a_service() -> None:
    async def run() -> None:
        async with RawServer(answer(200, b"[]")) as server, Directory(settings(server)) as directory:
            assert await directory.known("orders") is False
            server.says = answer(500)
            await asyncio.sleep(0.06)
            assert await directory.known("orders") is None

    asyncio.run(run())


def test_a_registry_that_hangs_for_one_service_does_not_hold_up_another() -> None:
    async def run() -> None:
        async with RawServer(hang) as server, Directory(settings(server, registry_timeout_s=5)) as directory:
            waiting = asyncio.create_task(directory.known("orders"))
            await asyncio.sleep(0.05)
            server.says = catalog(("10.0.0.1", 80))
            async with asyncio.timeout(1):
                assert await directory.known("payments") is True
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(run())


def test_what_is_kept_is_bounded() -> None:
    async def run() -> None:
        async with (
            RawServer(catalog(("10.0.0.1", 80))) as server,
            Directory(settings(server, registry_max_services=3, registry_ttl_s=60)) as directory,
        ):
            for name in ("a", "b", "c", "a", "d"):
                await directory.choose(name)
            assert len(server.requests) == 4
            await directory.choose("a")
            assert len(server.requests) == 4, "the least used went"
            await directory.choose("b")
            assert len(server.requests) == 5

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "target"),
    [("a b", "a%20b"), ("a/../b", "a%2F..%2Fb"), ("ü?x#y", "%C3%BC%3Fx%23y"), ("%2e", "%252e")],
)
def test_a_name_stays_one_segment_of_the_path(name: str, target: str) -> None:
    async def run() -> None:
        async with RawServer(answer(200, b"[]")) as server, Directory(settings(server)) as directory:
            assert await directory.known(name) is False
            assert server.requests[0].target == f"/v1/catalog/service/{target}"

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", ".", "..", "a\r\nb", "x" * 256])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    async def run() -> None:
        async with RawServer(answer(200, b"[]")) as server, Directory(settings(server)) as directory:
            assert await directory.known(name) is False
            assert not server.requests

    asyncio.run(run())


def test_the_map_comes_before_the_registry() -> None:
    async def run() -> None:
        map = json.dumps({"orders": "http://127.0.0.1:81/v1", "bills": ["http://b1", "https://b2"]})
        async with (
            RawServer(catalog(("10.0.0.1", 80))) as server,
            Directory(settings(server, service_map=map)) as directory,
        ):
            assert await urls(directory) == ["http://127.0.0.1:81/v1"]
            assert [(await directory.choose("bills")).url for _ in range(3)] == ["http://b1", "https://b2", "http://b1"]
            assert not server.requests
            assert await directory.known("payments") is True

    asyncio.run(run())


def test_without_a_registry_what_is_not_in_the_map_is_unknown() -> None:
    async def run() -> None:
        async with Directory(settings(None)) as directory:
            assert await directory.known("orders") is False
            with pytest.raises(UnknownService, match="SERVICE_REGISTRY_URL"):
                await directory.choose("orders")

    asyncio.run(run())


def test_entries_are_read_as_consul_means_them() -> None:
    entries = [
        {"ServiceAddress": "10.0.0.1", "ServicePort": 80},
        {"ServiceAddress": "", "Address": "10.0.0.2", "ServicePort": "8080"},
        {"Address": "10.0.0.3", "ServicePort": 1},
        {"ServiceAddress": "2001:db8::1", "ServicePort": 80},
        {"ServiceAddress": "Orders.Example", "ServicePort": 80},
        {"ServiceAddress": "10.0.0.1", "ServicePort": 80, "ServiceID": "twice"},
    ]
    assert [address.url for address in instances_from("orders", json.dumps(entries).encode())] == [
        "http://10.0.0.1",
        "http://10.0.0.2:8080",
        "http://10.0.0.3:1",
        "http://[2001:db8::1]",
        "http://orders.example",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        None,
        [],
        {},
        {"ServicePort": 80},
        {"ServiceAddress": "10.0.0.2"},
        {"ServiceAddress": 5, "ServicePort": 80},
        {"ServiceAddress": "a b", "ServicePort": 80},
        {"ServiceAddress": "user@host", "ServicePort": 80},
        {"ServiceAddress": "host/path", "ServicePort": 80},
        {"ServiceAddress": "127.1", "ServicePort": 80},
        {"ServiceAddress": "10.0.0.2", "ServicePort": 0},
        {"ServiceAddress": "10.0.0.2", "ServicePort": 65536},
        {"ServiceAddress": "10.0.0.2", "ServicePort": True},
        {"ServiceAddress": "10.0.0.2", "ServicePort": 80.5},
        {"ServiceAddress": "10.0.0.2", "ServicePort": "http"},
        {"ServiceAddress": "10.0.0.2", "ServicePort": "²"},
        {"ServiceAddress": "10.0.0.2", "ServicePort": None},
        {"ServiceAddress": "169.254.169.254", "ServicePort": 80},
        {"ServiceAddress": "metadata.google.internal", "ServicePort": 80},
        {"ServiceAddress": "224.0.0.1", "ServicePort": 80},
        {"ServiceAddress": "0.0.0.0", "ServicePort": 80},
    ],
)
def test_an_entry_that_cannot_be_used_is_left_out(wrong: Any) -> None:
    good = {"ServiceAddress": "10.0.0.1", "ServicePort": 80}
    assert [a.url for a in instances_from("orders", json.dumps([wrong, good]).encode())] == ["http://10.0.0.1"]
    with pytest.raises(ValueError, match="none of the registry's 1 entries"):
        instances_from("orders", json.dumps([wrong]).encode())


def test_a_thousand_instances_are_enough() -> None:
    entries = [{"ServiceAddress": f"10.0.{i // 250}.{i % 250}", "ServicePort": 80} for i in range(1500)]
    assert len(instances_from("orders", json.dumps(entries).encode())) == 1000


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("service_map", "[]", "JSON object"),
        ("service_map", "{", "not JSON"),
        ("service_map", '{"orders": 5}', "'orders'"),
        ("service_map", '{"orders": []}', "'orders'"),
        ("service_map", '{"orders": "orders:80"}', "'orders'.*absolute URL"),
        ("service_map", '{"orders": ["http://a", "http://u@b"]}', "'orders'.*user information"),
        ("service_map", '{"orders": "http://169.254.169.254"}', "'orders'.*metadata"),
        ("service_map", '{"orders": "http://a?b=c"}', "'orders'.*no query"),
        ("allowed_hosts", "a,b c", "'b c'"),
        ("service_registry_url", "consul:8500", "SERVICE_REGISTRY_URL"),
    ],
)
def test_settings_that_are_wrong_are_named(field: str, value: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        DirectorySettings(**{field: value})


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_REGISTRY_URL", "http://consul:8500/")
    monkeypatch.setenv("FLUXORA_SERVICE_MAP", '{"orders": "http://orders"}')
    monkeypatch.setenv("FLUXORA_ALLOWED_HOSTS", "orders, 10.0.0.0/8")
    monkeypatch.setenv("FLUXORA_RELAY_REGISTRY_TTL_S", "7")
    read = DirectorySettings.from_environment()
    assert read.service_registry_url == "http://consul:8500"
    assert read.static_map["orders"][0].url == "http://orders"
    assert read.allow_list.covers("10.1.1.1", 80)
    assert read.registry_ttl_s == 7


def test_empty_variables_are_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_REGISTRY_URL", "FLUXORA_SERVICE_MAP", "FLUXORA_ALLOWED_HOSTS"):
        monkeypatch.setenv(name, "")
    read = DirectorySettings.from_environment()
    assert read.service_registry_url is None
    assert not read.static_map
    assert not read.allow_list.entries
