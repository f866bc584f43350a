"""Events on the real stack: published, consumed by processes that die, read by other people's tools."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from prometheus_client import REGISTRY
from sqlalchemy import Connection, create_engine, text
from typer.testing import CliRunner

from fluxora import cli
from fluxora.init import add_service
from fluxora.settings import CliSettings
from fluxora.topics import Topic as WantedTopic
from fluxora.topics import ensure_topics
from participant import Command, Consumer, Event, EventType, Refused, Service, Settings, migrations, outbox
from participant.settings import sqlalchemy_url
from participant.testing import ConsumerTest, Fate, ServiceTest
from schemas import Codec, IncompatibleSchema, RegistryUnavailable, register_types
from tests.integration.event_samples import OrderPlaced, OrderPlacedBefore, order, order_placed, order_seen
from tests.integration.fix_participant import Addresses, Topic, addresses, fresh_database_url, headers_of, topic

__all__ = ["addresses", "fresh_database_url", "topic"]  # fixtures

PARTITIONS = 4
TABLES = (
    "CREATE TABLE seen (n bigserial, order_id text, customer text, number int, vat int)",
    "CREATE TABLE mended (n int)",
)


class Shop:
    """A topic of orders, a database of a consumer, and its processes."""

    def __init__(self, addresses: Addresses, database_url: str) -> None:
        self.addresses = addresses
        self.topic = f"orders{uuid.uuid4().hex[:10]}"
        self.group = f"{self.topic}-billing"
        self.database_url = database_url
        self.type = order_placed(OrderPlaced, self.topic)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.codec = Codec(addresses.registry)
        self.codec.add(self.type.schema)
        self.before = Codec(addresses.registry)
        self.before.add(order_placed(OrderPlacedBefore, self.topic).schema)
        admin = AdminClient({"bootstrap.servers": addresses.kafka})
        ensure_topics(admin, [WantedTopic(self.topic, PARTITIONS)])
        register_types(addresses.registry, [order_placed(OrderPlacedBefore, self.topic).schema])
        register_types(addresses.registry, [self.type.schema, order_seen(self.topic).schema])
        migrations.upgrade(database_url)
        self.engine = create_engine(sqlalchemy_url(database_url))
        with self.engine.begin() as connection:
            for table in TABLES:
                connection.execute(text(table))
        self.producer = Producer({"bootstrap.servers": addresses.kafka, "partitioner": "murmur2_random"})

    def send(self, event: Any, *, id: str | None = "", codec: Codec | None = None) -> str | None:
        """Send as Debezium would; a new id by default, None for none."""
        id = str(uuid.uuid4()) if id == "" else id
        headers = {} if id is None else {"ce_id": id, "ce_source": "shop", "ce_type": self.type.name}
        record = vars(event)
        self.raw((codec or self.codec).encode(self.type.name, record), key=record["customer"], headers=headers)
        return id

    def raw(self, value: bytes | None, *, key: str = "raw", headers: dict[str, Any] | None = None) -> None:
        self.producer.produce(self.topic, key=key, value=value, headers=headers or {})

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        self.producer.flush()
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("event_consumer.py")), self.group, self.topic],
            env={
                **os.environ,
                "DATABASE_URL": self.database_url,
                "KAFKA_BOOTSTRAP_SERVERS": self.addresses.kafka,
                "SCHEMA_REGISTRY_URL": self.addresses.registry,
                "PYTHONPATH": str(Path.cwd()),
                "FLUXORA_EVENT_RETRY_WAIT_S": "0.2",
                **environment,
            },
        )
        self.processes.append(process)
        return process

    def settings(self, **more: Any) -> Settings:
        return Settings(
            database_url=self.database_url,
            kafka_bootstrap_servers=self.addresses.kafka,
            schema_registry_url=self.addresses.registry,
            **more,
        )

    def query(self, sql: str, **parameters: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql), parameters).all())

    def seen(self) -> Counter[int]:
        return Counter(number for (number,) in self.query("SELECT number FROM seen"))

    def until(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        self.producer.flush()
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} within {seconds} s: {len(self.seen())} seen"
            time.sleep(0.1)

    def await_seen(self, number: int) -> Counter[int]:
        self.until(lambda: len(self.seen()) >= number, f"{number} events")
        return self.seen()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.engine.dispose()
        self.codec.close()
        self.before.close()


@pytest.fixture
def shop(addresses: Addresses, fresh_database_url: str) -> Iterator[Shop]:
    shop = Shop(addresses, fresh_database_url)
    yield shop
    shop.close()


@pytest.mark.parametrize("point", ["participant.events_before_commit", "participant.events_after_commit"])
def test_a_consumer_killed_at_its_commit_leaves_one_effect_and_one_row_of_its_own_an_event(
    shop: Shop, point: str
) -> None:
    for number in range(200):
        shop.send(order(number))
    for visit in (1, 2):
        process = shop.start(FLUXORA_CRASH_AT=f"{point}:{visit}", FLUXORA_BATCH_LIMIT="30")
        assert process.wait(timeout=60) == 137
    shop.start(FLUXORA_BATCH_LIMIT="30")
    seen = shop.await_seen(200)
    assert seen == Counter(dict.fromkeys(range(200), 1))
    rows = shop.query("SELECT count(*), count(DISTINCT aggregateid), min(source) FROM fluxora.outbox")
    assert rows == [(200, 200, "billing")]
    for customer in range(7):
        numbers = [n for (n,) in shop.query("SELECT number FROM seen WHERE customer = :c ORDER BY n", c=f"c{customer}")]
        assert numbers == sorted(numbers), "ordered per key"


def test_a_second_copy_is_dropped_wherever_it_comes_from_and_old_and_new_events_are_read_alike(shop: Shop) -> None:
    id = shop.send(order(1))
    shop.send(order(1), id=id)
    shop.send(OrderPlacedBefore("o2", "other", 2), codec=shop.before)
    shop.send(order(3, vat=7))
    shop.send(order(4), id=None)
    shop.start()
    shop.await_seen(4)
    shop.send(order(1), id=id)
    shop.send(order(5))
    assert shop.await_seen(5) == Counter(dict.fromkeys(range(1, 6), 1))
    assert dict(shop.query("SELECT number, vat FROM seen")) == {1: 19, 2: 19, 3: 7, 4: 19, 5: 19}


def test_poison_goes_to_the_dead_letters_with_connects_headers_and_the_rest_goes_on(
    shop: Shop, topic: Callable[[str], Topic]
) -> None:
    good = shop.codec.encode(shop.type.name, vars(order(0)))
    shop.raw(b"no avro at all")
    shop.raw(good[:-3])
    shop.raw(b"\0\x7f\xff\xff\xff" + good[5:])
    shop.raw(None)
    shop.raw(shop.codec.encode("fluxora.DeadlinePassed", {"transaction_id": str(uuid.uuid4()), "due_at": 1}))
    shop.send(order(1))
    poison = shop.send(order(8, wish="raise"))
    shop.send(order(15))
    shop.start(FLUXORA_EVENT_ATTEMPTS="3")
    assert shop.await_seen(2) == Counter({1: 1, 15: 1})
    letters = topic(f"{shop.topic}.{shop.group}.dlq").read(lambda found: len(found) >= 4)
    headers = [headers_of(letter) for letter in letters]
    assert Counter(h["__connect.errors.exception.class.name"] for h in headers) == Counter(
        {"schemas.errors.UndecodableRecord": 3, "builtins.ValueError": 1}
    )
    (failed,) = [h for h in headers if h["__connect.errors.stage"] == "TASK_PUT"]
    assert failed["ce_id"] == poison
    assert failed["__connect.errors.topic"] == shop.topic
    assert failed["__connect.errors.connector.name"] == shop.group
    assert "as asked" in failed["__connect.errors.exception.stacktrace"]
    assert shop.query("SELECT count(*) FROM fluxora.outbox") == [(2,)], "what a failed handler published is gone"


def test_an_event_that_fails_holds_back_its_partition_and_no_other(shop: Shop) -> None:
    held, other = "c1", "c2"
    shop.send(order(1, customer=held, wish="raise until row"))
    for number in range(2, 12):
        shop.send(order(number, customer=held))
        shop.send(order(number + 100, customer=other))
    shop.start(FLUXORA_EVENT_ATTEMPTS="0", FLUXORA_EVENT_RETRY_WAIT_MAX_S="0.5")
    shop.until(lambda: len(shop.seen()) >= 10, "the other partition's events")
    time.sleep(1.5)
    assert set(shop.seen()) == set(range(102, 112))
    with shop.engine.begin() as connection:
        connection.execute(text("INSERT INTO mended VALUES (1)"))
    shop.await_seen(21)
    numbers = [n for (n,) in shop.query("SELECT number FROM seen WHERE customer = :c ORDER BY n", c=held)]
    assert numbers == list(range(1, 12))


def test_two_members_share_the_work_one_dies_and_nothing_is_lost_or_doubled(shop: Shop) -> None:
    first, second = shop.start(FLUXORA_BATCH_LIMIT="5"), shop.start(FLUXORA_BATCH_LIMIT="5")
    for number in range(600):
        shop.send(order(number, customer=f"c{number % 50}"))
    shop.await_seen(50)
    first.kill()
    shop.start(FLUXORA_BATCH_LIMIT="5")
    for number in range(600, 800):
        shop.send(order(number, customer=f"c{number % 50}"))
    assert shop.await_seen(800) == Counter(dict.fromkeys(range(800), 1))
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == 0


def documented(command: str) -> str:
    """The shell command of docs/events.md that has these words in it, without its line breaks."""
    blocks = (Path(__file__).parents[2] / "docs" / "events.md").read_text().split("```")[1::2]
    [found] = [block for block in blocks if command in block]
    return found.strip().replace("\\\n", " ")


def test_a_whole_group_reads_again_by_kafkas_own_tool_and_the_inbox_drops_it_all(shop: Shop) -> None:
    for number in range(200):
        shop.send(order(number))
    process = shop.start()
    shop.await_seen(200)
    assert reset(shop) == set(), "the group has a member"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    shop.until(lambda: reset(shop), "the group's members have left")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shop.start(FLUXORA_HEALTH_PORT=str(port))

    def counted(outcome: str) -> float:
        try:
            told = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False).text
        except httpx.TransportError:
            return 0.0
        lines = [line for line in told.splitlines() if line.startswith("fluxora_events_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if f'outcome="{outcome}"' in line)

    shop.until(lambda: counted("duplicate") == 200, "every event comes again")
    assert counted("handled") == 0
    shop.send(order(200))
    assert shop.await_seen(201) == Counter(dict.fromkeys(range(201), 1))
    assert counted("duplicate") == 200


def reset(shop: Shop) -> set[str]:
    """Run the line of the documentation, for this group and topic; returns the new offsets, if it was done."""
    command = documented("--reset-offsets").replace("orders", shop.topic).replace("billing.events", shop.group)
    done = subprocess.run(
        command,
        shell=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": shop.addresses.kafka},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(shop.group)]
    assert {row[1] for row in rows} <= {shop.topic}
    return {row[3] for row in rows}


class Running:
    """A consumer on a thread of this process."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self._thread = threading.Thread(target=consumer.run, kwargs={"signals": False})

    def __enter__(self) -> Consumer:
        self._thread.start()
        return self.consumer

    def __exit__(self, *error: object) -> None:
        self.consumer.stop()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


def test_batches_pause_resume_lag_and_two_groups_in_one_database(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("participant.stream.LAG_EVERY_S", 0.2)
    sizes: list[int] = []

    def consumer(group: str) -> Consumer:
        made = Consumer("billing", group=group, settings=shop.settings())

        @made.on(shop.type, batch=True)
        def see(connection: Connection, events: list[Event]) -> None:
            sizes.append(len(events))
            rows = [{"id": e.id, "customer": group, "number": e.data.number} for e in events]
            connection.execute(text("INSERT INTO seen VALUES (DEFAULT, :id, :customer, :number)"), rows)

        return made

    def lag(group: str) -> float | None:
        values = [
            REGISTRY.get_sample_value(
                "fluxora_consumer_lag", {"group": group, "topic": shop.topic, "partition": str(partition)}
            )
            for partition in range(PARTITIONS)
        ]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == PARTITIONS else None

    for number in range(100):
        shop.send(order(number))
    one, two = f"{shop.group}-1", f"{shop.group}-2"
    with Running(consumer(one)) as first:
        shop.await_seen(100)
        first.pause()
        time.sleep(1.5)
        for number in range(100, 150):
            shop.send(order(number))
        shop.until(lambda: lag(one) == 50, "a lag of 50")
        assert len(shop.seen()) == 100
        first.resume()
        shop.await_seen(150)
        shop.until(lambda: lag(one) == 0, "no lag")
    with Running(consumer(one)), Running(consumer(two)):
        shop.until(lambda: sum(shop.seen().values()) >= 300, "both groups")
    assert set(shop.seen().values()) == {2}
    assert max(sizes) > 1


def test_a_database_that_goes_away_in_a_batch_costs_no_try_and_no_event(shop: Shop) -> None:
    consumer = Consumer("billing", group=shop.group, attempts=1, settings=shop.settings())
    left = [3]

    @consumer.on(shop.type)
    def see(connection: Connection, event: Event) -> None:
        connection.execute(text("INSERT INTO seen (number) VALUES (:n)"), {"n": event.data.number})
        if event.data.number == 25 and left[0]:
            left[0] -= 1
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    for number in range(50):
        shop.send(order(number))
    with Running(consumer):
        assert shop.await_seen(50) == Counter(dict.fromkeys(range(50), 1))
    assert left == [0]


def test_a_registry_that_is_down_and_a_schema_that_breaks_its_readers(shop: Shop) -> None:
    down = Codec("http://127.0.0.1:1")
    with shop.engine.begin() as connection, pytest.raises(RegistryUnavailable):
        outbox.publish(connection, order(1), type=shop.type, codec=down)
    down.close()
    assert shop.query("SELECT count(*) FROM fluxora.outbox") == [(0,)]
    breaking = json.loads(json.dumps(shop.type.schema))
    breaking["fields"].append({"name": "must", "type": "long"})
    with pytest.raises(IncompatibleSchema, match="A new field needs a default"):
        register_types(shop.addresses.registry, [breaking])


def test_the_command_line_registers_and_lists_schemas(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", shop.addresses.registry)
    name = f"test.{shop.topic}.Cli"
    file = tmp_path / "cli.avsc"
    schema = {"type": "record", "name": name, "fields": [{"name": "a", "type": "string"}]}
    file.write_text(json.dumps(schema))
    run = CliRunner().invoke
    done = run(cli.app, ["schema", "register", str(file), "tests.unit.test_events:OrderPlaced", "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)) == {name, "test.shop.OrderPlaced"}
    listed = run(cli.app, ["schema", "list", "--json"])
    assert name in {one["subject"] for one in json.loads(listed.stdout)}
    schema["fields"] = []
    schema["fields"] = [{"name": "a", "type": "long"}]
    file.write_text(json.dumps(schema))
    refused = run(cli.app, ["schema", "register", str(file)])
    assert refused.exit_code == 1
    assert "breaks BACKWARD compatibility" in refused.stderr


@pytest.fixture
def sent(shop: Shop, topic: Callable[[str], Topic]) -> tuple[Shop, Any]:
    """An event that went the whole way: row, Debezium, topic."""
    add_service(
        CliSettings(
            kafka_bootstrap_servers=shop.addresses.kafka,
            connect_url=shop.addresses.connect,
            schema_registry_url=shop.addresses.registry,
        ),
        shop.topic,
        shop.database_url,
    )
    with shop.engine.begin() as connection:
        outbox.publish(
            connection, order(7), type=shop.type, codec=shop.codec, traceparent=f"00-{0xA:032x}-{0xB:016x}-01"
        )
    return shop, topic(shop.topic).read(lambda found: len(found) >= 1)[0]


def test_a_stock_deserializer_reads_users_events_and_the_platforms(sent: tuple[Shop, Any]) -> None:
    shop, record = sent
    headers = headers_of(record)
    assert (headers["ce_type"], headers["ce_specversion"]) == (shop.type.name, "1.0")
    assert headers["traceparent"] == f"00-{0xA:032x}-{0xB:016x}-01"
    assert record.key() == b"c0"
    event = {
        "event_id": "t:1",
        "transaction_id": str(uuid.uuid4()),
        "sequence": 1,
        "type": "TransactionStarted",
        "state": "STARTED",
        "at": 1_700_000_000_000,
    }
    with SchemaRegistryClient({"url": shop.addresses.registry}) as client:
        deserialize = AvroDeserializer(client)
        context = SerializationContext(shop.topic, MessageField.VALUE)
        assert deserialize(record.value(), context) == vars(order(7))
        lifecycle = deserialize(shop.codec.encode("fluxora.TransactionEvent", event), context)
    assert isinstance(lifecycle, dict)
    assert lifecycle["type"] == "TransactionStarted"


def test_kcat_reads_headers_key_and_value(sent: tuple[Shop, Any]) -> None:
    kcat = shutil.which("kcat") or shutil.which("kafkacat")
    if kcat is None:
        pytest.skip("kcat is not installed: apt-get install kcat (docs/events.md)")
    shop, record = sent
    told = subprocess.run(
        [kcat, "-C", "-b", shop.addresses.kafka, "-t", shop.topic, "-o", "beginning", "-e", "-q", "-f", "%k|%h|%S\\n"],
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
    ).stdout
    key, headers, size = told.strip().split("|")
    assert key == "c0"
    assert f"ce_type={shop.type.name}" in headers
    assert int(size) == len(record.value())


def test_the_kits_test_handlers_without_broker_or_registry(shop: Shop) -> None:
    consumer = Consumer("billing")
    newer: EventType = shop.type

    @consumer.on(newer)
    def see(connection: Connection, event: Event) -> None:
        connection.execute(text("INSERT INTO seen (number) VALUES (:n)"), {"n": event.data.number})
        outbox.publish(connection, {"order_id": event.data.order_id}, type=order_seen(shop.topic))
        if event.data.wish == "raise":
            raise ValueError("as asked")

    with shop.engine.connect() as connection:
        test = ConsumerTest(consumer, connection)
        assert test.deliver(order(1), type=newer, id="1", traceparent="00-a-b-01") is Fate.HANDLED
        assert test.deliver(order(1), type=newer, id="1") is Fate.DUPLICATE
        before = order_placed(OrderPlacedBefore, shop.topic)
        assert test.deliver(OrderPlacedBefore("o2", "c", 2), type=before) is Fate.HANDLED
        assert test.deliver({}, type="test.Other", topic=shop.topic) is Fate.SKIPPED
        with pytest.raises(ValueError, match="as asked"):
            test.deliver(order(3, wish="raise"), type=newer)
        assert [(one.key, one.source, one.traceparent) for one in test.published()] == [
            ("o1", "billing", "00-a-b-01"),
            ("o2", "billing", None),
        ]
        assert connection.execute(text("SELECT array_agg(number ORDER BY n) FROM seen")).scalar_one() == [1, 2]
        connection.rollback()
    assert shop.seen() == Counter()


def test_the_kit_for_commands_keeps_the_rules_of_a_service(shop: Shop) -> None:
    service = Service("billing")

    @service.action("bill")
    def bill(connection: Connection, command: Command) -> dict[str, int] | Refused:
        connection.execute(text("INSERT INTO seen (number) VALUES (:n)"), {"n": command.payload["n"]})
        if command.payload["n"] < 0:
            return Refused("no negative bills")
        return {"bill": 1 // command.payload["n"]}

    @service.compensation("bill")
    def unbill(connection: Connection, command: Command) -> None:
        assert command.result == {"bill": 1}
        connection.execute(text("DELETE FROM seen"))

    with shop.engine.connect() as connection:
        test = ServiceTest(service, connection)
        id = uuid.uuid4()
        assert test.act("bill", {"n": 1}, transaction=id).result == '{"bill":1}'
        assert test.act("bill", {"n": -1}).outcome == "REFUSED"
        with pytest.raises(ZeroDivisionError):
            test.act("bill", {"n": 0})
        assert connection.execute(text("SELECT count(*) FROM seen")).scalar_one() == 1
        assert test.compensate("bill", transaction=id).outcome == "DONE"
        assert connection.execute(text("SELECT count(*) FROM seen")).scalar_one() == 0
        with pytest.raises(ValueError, match="was sent before"):
            test.compensate("bill", transaction=id)
        connection.rollback()
