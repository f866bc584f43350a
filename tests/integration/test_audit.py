"""Every row of an outbox is in its topic, and a gap is found, named and filled."""

import os
import time
import uuid
from collections.abc import Iterator

import httpx
import pytest
from confluent_kafka import Message
from sqlalchemy import Engine, create_engine, text

from connectors import connector_name, ensure_slot
from fluxora.audit import event_headers
from participant import outbox
from tests import command_line
from tests.command_line import fluxora
from tests.platform import Platform

NAME = f"audited{uuid.uuid4().hex[:6]}"
TOPIC = f"{NAME}.events"


@pytest.fixture(scope="module")
def database(platform: Platform) -> Iterator[Engine]:
    """A service's database with a connector of its own."""
    url = platform.endpoints["DATABASE_URL"].removesuffix("fluxora") + NAME
    environment = {**os.environ, **platform.endpoints}
    added = command_line.run(
        "service", "add", NAME, "--create-database", "--database-url", url, environment=environment
    )
    assert added.returncode == 0, added.stderr
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()
    connect(platform, "DELETE", "")


def connect(platform: Platform, method: str, path: str) -> None:
    url = f"{platform.endpoints['CONNECT_URL']}/connectors/{connector_name(NAME)}{path}"
    for _ in range(100):
        answer = httpx.request(method, url, timeout=30)
        if answer.status_code not in (404, 409, 500):
            break
        time.sleep(0.2)
    assert answer.status_code < 300, answer.text


def publish(database: Engine, *keys: str) -> list[str]:
    ids = []
    for key in keys:
        with database.begin() as connection:
            ids.append(
                str(
                    outbox.publish(
                        connection,
                        b'{"n": 1}',
                        topic=TOPIC,
                        key=key,
                        type="audited.Happened",
                        source="/audited",
                        content_type="application/json",
                        traceparent=f"00-{'a' * 32}-{'b' * 16}-01" if key.endswith("traced") else None,
                    )
                )
            )
    return ids


def arrived(platform: Platform, key: str) -> list[Message]:
    return platform.records_of(TOPIC, key)


def audit(platform: Platform, *options: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    code, told, errors = fluxora(platform, "audit", "--database", NAME, *options)
    assert told is not None, errors
    return code, told[0]


def test_rows_that_all_arrive_leave_no_gap(platform: Platform, database: Engine) -> None:
    publish(database, "a", "b", "c-traced")
    code, told = audit(platform)
    assert (code, told["rows"], told["missing"], told["problems"]) == (0, 3, [], [])
    assert told["no_gap_up_to"] > "2026"


def test_rows_of_the_whole_platform_have_no_gap(platform: Platform) -> None:
    code, told, errors = fluxora(platform, "audit")
    assert code == 0, (told, errors)
    assert {one["database"] for one in told} >= {"fluxora", "fluxora_ledger"}


def test_a_slot_dropped_during_writes_is_a_gap_that_is_named_and_filled(platform: Platform, database: Engine) -> None:
    before = publish(database, "before")
    platform.until(lambda: arrived(platform, "before"), "the first row did not arrive")
    connect(platform, "PUT", "/stop")
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        drop = text("SELECT pg_drop_replication_slot(:name)")
        platform.until(lambda: connection.execute(drop, {"name": connector_name(NAME)}), "the slot stays in use")
    lost = publish(database, "lost", "lost", "lost-traced")
    code, told = audit(platform, "--wait", "0")
    assert code == 3
    assert [row["id"] for row in told["missing"]] == lost
    assert any("is gone" in problem for problem in told["problems"])

    # A person makes the slot again; what was written in between is in no topic.
    connect(platform, "DELETE", "/offsets")
    ensure_slot(str(database.url.render_as_string(hide_password=False)).replace("+psycopg", ""))
    connect(platform, "PUT", "/resume")
    after = publish(database, "after")
    platform.until(lambda: arrived(platform, "after"), "the stream does not go on")
    code, told = audit(platform)
    assert (code, [row["id"] for row in told["missing"]]) == (3, lost)
    assert not arrived(platform, "lost")

    code, told = audit(platform, "--refill")
    assert told["refilled"] == 3
    code, told = audit(platform)
    assert (code, told["missing"], told["problems"]) == (0, [], [])
    assert len(arrived(platform, "lost")) == 2
    assert len({*before, *lost, *after}) == 5


def test_a_row_that_was_published_again_is_the_record_that_debezium_makes(platform: Platform, database: Engine) -> None:
    """Header by header: a consumer cannot tell. Debezium's notes about itself are nobody's business."""

    def headers(message: Message) -> dict[str, bytes | None]:
        return {k: v for k, v in (message.headers() or []) if not k.startswith("__debezium.")}  # type: ignore[misc,str-unpack]

    # Six decimals, whatever they are.
    times = ["2026-01-02T03:04:05.000000", "2026-01-02T03:04:05.120000", "2026-01-02T03:04:05.000001"]
    with database.begin() as connection:
        for i, at in enumerate(times):
            connection.execute(
                text(
                    "INSERT INTO fluxora.outbox (id, aggregatetype, aggregateid, type, payload, topic, source, "
                    "content_type, created_at) SELECT gen_random_uuid(), aggregatetype, :key, type, payload, topic, "
                    "source, content_type, CAST(:at AS timestamptz) FROM fluxora.outbox WHERE aggregateid = 'a'"
                ),
                {"key": f"at-{i}", "at": f"{at}Z"},
            )
        rows = connection.execute(
            text(
                "SELECT aggregateid, id, type, source, traceparent, content_type, specversion, payload, "
                "(extract(epoch FROM created_at) * 1000000)::bigint FROM fluxora.outbox"
            )
        ).all()
    published_again = {"lost", "lost-traced"}
    assert {row[0] for row in rows} >= {"a", "b", "c-traced", "after", "at-0", "at-1", "at-2"} | published_again
    for i in range(len(times)):
        platform.until(lambda key=f"at-{i}": arrived(platform, key), f"at-{i} did not arrive")  # type: ignore[misc]
    for key, id, type, source, traceparent, content_type, specversion, payload, micros in rows:
        [record] = [one for one in arrived(platform, key) if headers(one)["id"] == str(id).encode()]
        expected = event_headers(id, type, source, traceparent, content_type, specversion, micros)
        assert headers(record) == dict(expected), key
        assert record.value() == bytes(payload)
        if key.startswith("at-"):
            assert headers(record)["ce_time"] == f"{times[int(key.removeprefix('at-'))]}Z".encode()


def test_a_publication_that_was_changed_is_told(platform: Platform, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("ALTER PUBLICATION fluxora_outbox SET (publish = 'insert, delete')"))
    try:
        code, told = audit(platform)
    finally:
        with database.begin() as connection:
            connection.execute(text("ALTER PUBLICATION fluxora_outbox SET (publish = 'insert')"))
    assert code == 3
    assert any("publication" in problem for problem in told["problems"])
