"""What may be called, by its text and by what it resolves to."""

import asyncio
import ipaddress
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_relay.addresses import (
    Address,
    AddressRefused,
    AllowList,
    Resolver,
    Unresolvable,
    check_service_url,
    check_url,
    forbidden,
    is_absolute,
    parse_host,
    parse_url,
)

EVERYTHING = AllowList.parse("0.0.0.0/0,::/0,metadata.google.internal,*.internal,localhost")
METADATA = int(ipaddress.ip_address("169.254.169.254"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://orders", "http://orders"),
        ("HTTP://Orders.Example.:80/Pay", "http://orders.example/Pay"),
        ("https://orders:443", "https://orders"),
        ("https://orders:80/", "https://orders:80/"),
        ("http://10.0.0.7:8080/a/b", "http://10.0.0.7:8080/a/b"),
        ("http://[2001:DB8:0::1]:81/x", "http://[2001:db8::1]:81/x"),
        ("http://[::ffff:10.0.0.7]/x", "http://10.0.0.7/x"),
        ("http://a_b.c-d/x?y=1", "http://a_b.c-d/x?y=1"),
    ],
)
def test_a_url_has_one_spelling(text: str, url: str) -> None:
    assert parse_url(text).url == url
    assert parse_url(url).url == url


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "not an absolute URL"),
        ("orders", "not an absolute URL"),
        ("/pay", "not an absolute URL"),
        ("//orders/pay", "not an absolute URL"),
        ("http:/orders", "not an absolute URL"),
        ("ftp://orders", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://orders:70/_x", "scheme"),
        ("http+unix://%2Frun%2Fdocker.sock/x", "scheme"),
        ("http://user@orders", "user information"),
        ("http://user:password@orders", "user information"),
        ("http://allowed.example@169.254.169.254/", "user information"),
        ("http://orders/#x", "fragment"),
        ("http://orders#@169.254.169.254/", "after //|fragment"),
        ("http://orders\\@evil/", "printable ASCII"),
        ("http://orders/\r\nX: y", "printable ASCII"),
        ("http://orders/\tx", "printable ASCII"),
        ("http://orders/ x", "printable ASCII"),
        ("http://orders/\x00", "printable ASCII"),
        ("http://bücher.example", "punycode"),
        ("http://①②⑦.0.0.1", "punycode"),  # NFKC makes digits of them
        ("http://", "host '' is no domain name"),
        ("http://:80", "no domain name"),
        ("http://orders:", "after //"),
        ("http://orders:0", "port"),
        ("http://orders:65536", "port"),
        ("http://orders:-1", "after //"),
        ("http://orders:80:80", "after //"),
        ("http://-orders", "no domain name"),
        ("http://or..ders", "no domain name"),
        ("http://orders..", "no domain name"),
        ("http://or%64ers", "no domain name"),
        ("http://[orders]", "brackets"),
        ("http://[::1", "after //"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://[12345::]/", "no IPv6 address"),
        ("http://127.1", "four decimal numbers"),
        ("http://2130706433", "four decimal numbers"),
        ("http://0x7f.0.0.1", "four decimal numbers"),
        ("http://0x7f000001", "four decimal numbers"),
        ("http://0177.0.0.1", "four decimal numbers"),
        ("http://127.0.0.01", "four decimal numbers"),
        ("http://127.0.0.0x1", "four decimal numbers"),
        ("http://256.0.0.1", "four decimal numbers"),
        ("http://1.2.3.4.5", "four decimal numbers"),
        ("http://orders.5", "four decimal numbers"),
        ("http://orders/../admin", "dot segments"),
        ("http://orders/%2e%2E/admin", "dot segments"),
        ("http://orders/./admin", "dot segments"),
        ("http://orders/" + "x" * 2000, "characters"),
    ],
)
def test_a_url_that_breaks_a_rule_is_refused_by_its_name(text: str, rule: str) -> None:
    with pytest.raises(AddressRefused, match=rule):
        parse_url(text)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "169.254.170.2",
        "[fe80::1]",
        "[febf:ffff::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "instance-data",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:a9fe:a9fe::1]",
        "[2001:0:102:304::5601:5601]",
        "[2001:db8::5efe:169.254.169.254]",
        "[2001:db8::200:5efe:169.254.169.254]",
        "[2002:7f00:1::]",
        "[64:ff9b::127.0.0.1]",
        "0.0.0.0",
        "0.1.2.3",
        "[::]",
        "224.0.0.1",
        "239.255.255.250",
        "[ff02::1]",
        "255.255.255.255",
        "240.0.0.1",
        "[fec0::1]",
    ],
)
def test_some_addresses_are_refused_although_everything_is_allow_listed(host: str) -> None:
    with pytest.raises(AddressRefused, match="whatever the allow-list says"):
        check_url(f"http://{host}/latest/meta-data", EVERYTHING)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "127.0.0.1", "[::1]", "[2001:db8::1]", "[2002:a00:1::]", "localhost", "x.internal"]
)
def test_other_addresses_are_as_the_allow_list_says(host: str) -> None:
    assert check_url(f"http://{host}:81/x", EVERYTHING)
    with pytest.raises(AddressRefused, match="FLUXORA_ALLOWED_HOSTS"):
        check_url(f"http://{host}:81/x", AllowList())


def _spelled(number: int, forms: list[str], dot: str) -> str:
    """An IPv4 address as inet_aton reads it: 1 to 4 parts, each decimal, octal or hexadecimal."""
    parts = len(forms)
    values = [(number >> (24 - 8 * i)) & 255 for i in range(parts - 1)]
    values.append(number & ((1 << (8 * (5 - parts))) - 1))
    return (
        ".".join(
            {"d": "{}", "o": "0{:o}", "x": "0x{:x}", "X": "0X{:X}"}[f].format(v)
            for f, v in zip(forms, values, strict=True)
        )
        + dot
    )


@given(
    st.sampled_from(["169.254.169.254", "169.254.1.2", "0.0.0.0", "224.0.0.9", "255.255.255.255", "127.0.0.1"]),
    st.lists(st.sampled_from("doxX"), min_size=1, max_size=4),
    st.sampled_from(["", "."]),
)
def test_no_spelling_of_an_ipv4_address_gets_round_the_rules(ip: str, forms: list[str], dot: str) -> None:
    text = _spelled(int(ipaddress.ip_address(ip)), forms, dot)
    names_only = AllowList.parse("*.example,10.0.0.0/8")
    with pytest.raises(AddressRefused):
        check_url(f"http://{text}/", names_only)
    if ip != "127.0.0.1":
        with pytest.raises(AddressRefused):
            check_url(f"http://{text}/", EVERYTHING)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(["::ffff:{}", "::{}", "::ffff:0:{}", "64:ff9b::{}"]))
def test_wrapping_an_ipv4_address_never_makes_it_callable(number: int, upper: bool, wrapping: str) -> None:
    ip = str(ipaddress.ip_address(number))
    wrapped = wrapping.format(ip).upper() if upper else wrapping.format(ip)
    # ::1 is IPv6's own loopback, which is not forbidden; it wraps 0.0.0.1, which nobody can call.
    if forbidden(ip) and ipaddress.ip_address(wrapped) != ipaddress.ip_address("::1"):
        assert forbidden(parse_host(f"[{wrapped}]"))


@given(st.text(max_size=60))
def test_whatever_the_text_is_it_is_an_address_or_refused(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://{text}/x", f"http://allowed.example{text}"):
        try:
            address = check_url(candidate, AllowList.parse("allowed.example"))
        except AddressRefused:
            continue
        assert address.host == "allowed.example"
        assert parse_url(address.url) == address


@given(st.text(alphabet="0123456789abcdefx.:[]%@#/\\-", max_size=30))
def test_what_is_read_twice_is_read_alike(text: str) -> None:
    try:
        address = parse_url(f"http://{text}")
    except AddressRefused:
        return
    assert parse_url(address.url) == address
    # What Python's own reader of addresses takes for one is one here, too.
    assert address.ip is None or str(ipaddress.ip_address(address.host)) == address.host


@pytest.mark.parametrize(
    ("entries", "url", "covered"),
    [
        ("orders", "http://orders", True),
        ("orders", "http://orders:8080", True),
        ("Orders.", "http://orders", True),
        ("orders", "http://xorders", False),
        ("orders", "http://orders.evil", False),
        ("orders:8080", "http://orders:8080", True),
        ("orders:8080", "http://orders", False),
        ("orders:443", "https://orders", True),
        ("*.example", "http://a.example", True),
        ("*.example", "http://a.b.example:1", True),
        ("*.example", "http://example", False),
        ("*.example", "http://aexample", False),
        ("*.example:80", "http://a.example", True),
        ("*.example:80", "https://a.example", False),
        ("10.1.0.0/16", "http://10.1.2.3", True),
        ("10.1.0.0/16", "http://10.2.0.1", False),
        ("10.1.0.0/16", "http://[::ffff:10.1.2.3]", True),
        ("10.1.2.3", "http://10.1.2.3:9", True),
        ("10.1.2.3:80", "http://10.1.2.3:9", False),
        ("::1", "http://[::1]:9", True),
        ("[::1]:80", "http://[::1]", True),
        ("[::1]:80", "http://[::1]:9", False),
        ("2001:db8::/32", "http://[2001:db8::5]", True),
        ("2001:db8::/32", "http://10.0.0.1", False),
        ("0.0.0.0/0", "http://orders", False),
        (" a , ,orders", "http://orders", True),
    ],
)
def test_the_allow_list_covers(entries: str, url: str, covered: bool) -> None:
    address = parse_url(url)
    assert AllowList.parse(entries).covers(address.host, address.port) is covered


@pytest.mark.parametrize(
    "entry", ["*", "*.", "*.10.0.0.1", "http://x", "a b", "10.1.0.1/16", "x:0", "x:y", "127.1", "a.*", "*.*.x"]
)
def test_a_wrong_entry_of_the_allow_list_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match=r"FLUXORA_ALLOWED_HOSTS: the entry '.*'"):
        AllowList.parse(f"orders,{entry}")


def test_a_service_url_has_no_query_but_an_endpoint_may() -> None:
    allowed = AllowList.parse("orders")
    assert check_url("http://orders/x?y=1", allowed).path == "/x?y=1"
    with pytest.raises(AddressRefused, match="no query"):
        check_service_url("http://orders/x?y=1", allowed)


@pytest.mark.parametrize(
    ("base", "endpoint", "url"),
    [
        ("http://orders", "/pay", "http://orders/pay"),
        ("http://orders", "pay", "http://orders/pay"),
        ("http://orders/", "/pay", "http://orders/pay"),
        ("http://orders/v1", "/pay?now=1", "http://orders/v1/pay?now=1"),
        ("http://orders/v1/", "pay", "http://orders/v1/pay"),
        ("http://orders", "", "http://orders/"),
        ("http://orders", "//evil/x", "http://orders//evil/x"),
        ("http://orders", "@evil/x", "http://orders/@evil/x"),
        ("http://orders", ":80@evil/", "http://orders/:80@evil/"),
    ],
)
def test_an_endpoint_is_appended_and_never_changes_the_host(base: str, endpoint: str, url: str) -> None:
    assert parse_url(base).join(endpoint).url == url


@pytest.mark.parametrize(
    "endpoint", ["/../x", "/a/..", "/%2e%2e/x", "/x#y", "/x y", "/ü", "/x\r\nHost: evil", "\\evil"]
)
def test_an_endpoint_that_means_something_else_is_refused(endpoint: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url("http://orders").join(endpoint)


def test_an_endpoint_is_absolute_when_it_has_a_scheme() -> None:
    assert is_absolute("http://orders/x")
    assert is_absolute("ftp://orders/x")
    assert not is_absolute("/orders")
    assert not is_absolute("orders/http://x")
    assert not is_absolute("//orders/x")


# ── Resolving ──────────────────────────────────────────────────────────────────────────────────────────────


def _resolved(url: str, answers: list[str], allowed: AllowList | None) -> list[str]:
    async def run() -> list[str]:
        resolver = Resolver(lookup=lambda name: answers)
        try:
            return [str(ip) for ip in await resolver.resolve(parse_url(url), allowed)]
        finally:
            resolver.close()

    return asyncio.run(run())


def test_a_name_resolves_to_all_of_its_addresses() -> None:
    assert _resolved("http://orders", ["10.0.0.1", "2001:db8::1"], AllowList.parse("orders")) == [
        "10.0.0.1",
        "2001:db8::1",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "0.0.0.0",
        "ff02::1",
        "2002:a9fe:a9fe::",
    ],
)
@pytest.mark.parametrize("allowed", [None, AllowList.parse("orders,0.0.0.0/0,::/0")])
def test_one_forbidden_address_among_good_ones_is_enough_to_refuse(bad: str, allowed: AllowList | None) -> None:
    with pytest.raises(AddressRefused, match="orders resolves to"):
        _resolved("http://orders", ["10.0.0.1", bad, "10.0.0.2"], allowed)


@pytest.mark.parametrize("loopback", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_an_allow_listed_name_that_points_to_this_machine_is_refused_unless_loopback_is_listed(loopback: str) -> None:
    with pytest.raises(AddressRefused, match="loopback"):
        _resolved("http://orders", [loopback], AllowList.parse("orders"))
    assert _resolved("http://orders", [loopback], AllowList.parse("orders,127.0.0.0/8,::1"))
    assert _resolved("http://orders", [loopback], None), "the registry may name this machine"
    assert _resolved("http://localhost", [loopback], AllowList.parse("localhost"))


def test_the_registry_may_not_name_a_metadata_service() -> None:
    for url in ("http://169.254.169.254", "http://metadata.google.internal"):
        with pytest.raises(AddressRefused, match="whatever"):
            _resolved(url, ["10.0.0.1"], None)


def test_an_address_is_not_looked_up() -> None:
    assert _resolved("http://10.0.0.1", ["10.9.9.9"], AllowList()) == ["10.0.0.1"]


def test_a_name_that_changes_is_not_asked_for_again_at_once() -> None:
    answers = iter([["10.0.0.1"], ["169.254.169.254"]])

    async def run() -> None:
        resolver = Resolver(ttl_s=0.05, lookup=lambda name: next(answers))
        address = Address("http", "orders", 80)
        assert [str(ip) for ip in await resolver.resolve(address, None)] == ["10.0.0.1"]
        assert [str(ip) for ip in await resolver.resolve(address, None)] == ["10.0.0.1"]
        await asyncio.sleep(0.06)
        with pytest.raises(AddressRefused):
            await resolver.resolve(address, None)
        resolver.close()

    asyncio.run(run())


def test_a_name_without_an_answer_is_unresolvable() -> None:
    def fails(name: str) -> list[str]:
        raise OSError(-2, "Name or service not known")

    async def run() -> None:
        resolver = Resolver(lookup=fails)
        with pytest.raises(Unresolvable, match="Name or service not known"):
            await resolver.resolve(Address("http", "orders", 80), None)
        resolver.close()

    asyncio.run(run())


def test_a_name_server_that_hangs_holds_up_only_the_names_it_is_asked_for() -> None:
    release, asked = threading.Event(), []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        if name.startswith("slow"):
            release.wait(10)
        return ["10.0.0.1"]

    async def run() -> None:
        resolver = Resolver(timeout_s=0.1, lookups=3, lookup=lookup)

        async def resolve(name: str) -> object:
            return await resolver.resolve(Address("http", name, 80), None)

        began = time.monotonic()
        slow = await asyncio.gather(*(resolve(f"slow{i % 2}") for i in range(20)), return_exceptions=True)
        assert all(isinstance(error, Unresolvable) for error in slow)
        assert sorted(asked) == ["slow0", "slow1"], "one lookup a name"
        assert await resolve("quick")
        with pytest.raises(Unresolvable, match="within"):
            await resolve("slow2")
        with pytest.raises(Unresolvable, match="under way"):
            await resolve("slow3")
        assert time.monotonic() - began < 2
        release.set()
        resolver.close()

    asyncio.run(run())
