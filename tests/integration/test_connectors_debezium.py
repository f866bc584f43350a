"""The connector on the real stack: what an outbox row becomes, and what is never lost silently."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import httpx
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY
from sqlalchemy import Engine, Row, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from connectors import Connect, configuration, connector_name, ensure_slot
from connectors.slots import slot_state
from connectors.watcher import Watcher, WatcherSettings
from deploy.stack import Stack
from fluxora.topics import Topic as Wanted
from fluxora.topics import ensure_topics, heartbeat_topics, partitions_by_topic
from participant import migrations, outbox
from participant.settings import sqlalchemy_url
from tests.integration.fix_participant import (
    Addresses,
    Topic,
    addresses,
    connect,
    fresh_database_url,
    headers_of,
    new_name,
    topic,
)

__all__ = ["addresses", "connect", "fresh_database_url", "new_name", "topic"]  # fixtures

T = TypeVar("T")


class Service:
    """A database with an outbox, its slot and its connector."""

    def __init__(self, addresses: Addresses, connect: Connect, url: str) -> None:
        self.addresses = addresses
        self.connect = connect
        self.url = url
        self.name = connector_name(make_url(url).database or "")
        self.engine: Engine = create_engine(sqlalchemy_url(url), poolclass=NullPool)
        migrations.upgrade(url)
        assert ensure_slot(url)
        assert not ensure_slot(url)

    def register(self) -> None:
        ensure_topics(AdminClient({"bootstrap.servers": self.addresses.kafka}), heartbeat_topics(self.name))
        self.connect.put(self.name, configuration(self.url))
        self.connect.await_running(self.name)

    def publish(self, topic: str, number: int, start: int = 0) -> list[outbox.Message]:
        messages = [
            outbox.Message(
                topic=topic,
                key=str(uuid.uuid4()),
                type="test.Happened",
                payload=f"{i}".encode() + b"\x00\xff\xfe binary",
                source="tester",
                traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" if i % 2 else None,
            )
            for i in range(start, start + number)
        ]
        with self.engine.begin() as connection:
            outbox.publish_many(connection, messages)
        return messages

    def sql(self, statement: str, **parameters: object) -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement), parameters)

    def terminate_sender(self) -> None:
        self.sql(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = :n AND active",
            n=self.name,
        )


@pytest.fixture
def service(addresses: Addresses, connect: Connect, fresh_database_url: str) -> Iterator[Service]:
    service = Service(addresses, connect, fresh_database_url)
    yield service
    service.engine.dispose()


@pytest.fixture
def events(addresses: Addresses, new_name: Callable[[str], str]) -> str:
    name = new_name("events")
    ensure_topics(AdminClient({"bootstrap.servers": addresses.kafka}), [Wanted(name, 12)])
    return name


def bodies(messages: list[Message]) -> list[bytes]:
    return sorted(message.value() or b"" for message in messages)


def test_a_row_arrives_as_it_was_written_with_cloudevents_headers(
    service: Service, events: str, topic: Callable[[str], Topic]
) -> None:
    service.register()
    sent = {str(message.id): message for message in service.publish(events, 50)}
    found = topic(events).read(lambda messages: len(messages) >= 50)
    assert len(found) == 50
    for record in found:
        headers = headers_of(record)
        message = sent[headers["ce_id"]]
        assert record.key() == message.key.encode()
        assert record.value() == message.payload
        assert headers["ce_type"] == "test.Happened"
        assert headers["ce_source"] == "tester"
        assert headers["ce_specversion"] == "1.0"
        assert headers["content-type"] == "application/avro"
        assert headers.get("traceparent") == message.traceparent
        assert headers["ce_time"].endswith("Z")
        assert abs(datetime.fromisoformat(headers["ce_time"]).timestamp() - time.time()) < 120


def test_debezium_and_murmur2_random_choose_the_same_partition(
    service: Service, events: str, topic: Callable[[str], Topic], addresses: Addresses, new_name: Callable[[str], str]
) -> None:
    ours = new_name("ours")
    ensure_topics(AdminClient({"bootstrap.servers": addresses.kafka}), [Wanted(ours, 12)])
    service.register()
    sent = service.publish(events, 200)
    producer = Producer({"bootstrap.servers": addresses.kafka, "partitioner": "murmur2_random"})
    for message in sent:
        producer.produce(ours, key=message.key, value=b"")
    producer.flush()
    by_key = [
        {record.key(): record.partition() for record in topic(name).read(lambda messages: len(messages) >= 200)}
        for name in (events, ours)
    ]
    assert by_key[0] == by_key[1]
    assert len(set(by_key[0].values())) == 12


def test_rows_written_before_the_connector_is_there_arrive_in_order(
    service: Service, events: str, topic: Callable[[str], Topic]
) -> None:
    early = service.publish(events, 20)
    service.register()
    late = service.publish(events, 20, start=20)
    found = topic(events).read(lambda messages: len(messages) >= 40)
    assert bodies(found) == sorted(message.payload for message in early + late)


def test_nothing_is_lost_when_the_sender_is_killed_again_and_again(
    service: Service, events: str, topic: Callable[[str], Topic]
) -> None:
    service.register()
    sent = []
    for i in range(5):
        sent += service.publish(events, 20, start=20 * i)
        service.terminate_sender()
        time.sleep(0.3)
        sent += service.publish(events, 20, start=1000 + 20 * i)
    wanted = {str(message.id) for message in sent}
    topic(events).read(lambda messages: wanted <= {headers_of(m)["ce_id"] for m in messages}, timeout_s=180)


def test_a_slot_that_was_made_anew_fails_loudly_instead_of_skipping(
    service: Service, events: str, topic: Callable[[str], Topic]
) -> None:
    service.register()
    service.publish(events, 10)
    reader = topic(events)
    reader.read(lambda messages: len(messages) >= 10)
    _await_confirmed(service)
    _stop(service)
    service.sql("SELECT pg_drop_replication_slot(:n)", n=service.name)
    service.publish(events, 5, start=10)  # these are lost: no slot kept them
    ensure_slot(service.url)
    _resume(service)
    failure = _await(lambda: service.connect.connectors(service.name)[service.name].failures, 120)
    assert "no longer available" in failure[0].trace
    assert len(reader.read(lambda messages: True)) <= 10


def test_a_missing_slot_fails_loudly_too(service: Service, events: str, topic: Callable[[str], Topic]) -> None:
    """Debezium makes a slot that is missing by itself; what it then finds must stop it all the same."""
    service.register()
    service.publish(events, 10)
    topic(events).read(lambda messages: len(messages) >= 10)
    _await_confirmed(service)
    _stop(service)
    service.sql("SELECT pg_drop_replication_slot(:n)", n=service.name)
    service.publish(events, 5, start=10)
    _resume(service)
    assert _await(lambda: service.connect.connectors(service.name)[service.name].failures, 120)


def test_an_idle_database_moves_its_slot_on(service: Service) -> None:
    service.register()
    service.connect.put(service.name, configuration(service.url, heartbeat_interval_ms=500))
    service.connect.await_running(service.name)
    service.sql("CREATE TABLE elsewhere AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)")

    def caught_up() -> bool:
        with service.engine.connect() as connection:
            state = slot_state(connection, service.name)
        return state is not None and state.active and state.lag_bytes < 100_000

    assert _await(caught_up, 120)


@pytest.fixture
def impatient(addresses: Addresses) -> Iterator[Connect]:
    with Connect(addresses.connect, patience_s=1) as client:
        yield client


@pytest.fixture
def unwatched(stack: Stack) -> Iterator[None]:
    """The stack's own watcher sees to nothing meanwhile."""
    watcher = stack.pid("connector-watcher")
    os.kill(watcher, signal.SIGSTOP)
    yield
    os.kill(watcher, signal.SIGCONT)


@pytest.mark.usefixtures("unwatched")
def test_the_watcher_restarts_a_failed_connector_and_restores_a_vanished_one(
    service: Service, impatient: Connect, events: str, topic: Callable[[str], Topic]
) -> None:
    service.register()
    settings = WatcherSettings(connect_url=service.addresses.connect, restart_wait_min_s=0.5, restart_wait_max_s=2)
    watcher = Watcher(impatient, settings)
    watcher.look()

    def mine() -> list[str]:
        return [reason for reason in watcher.ready() if reason.startswith(service.name)]

    def well() -> bool:
        watcher.look()
        time.sleep(0.2)
        return not mine()

    assert mine() == []

    # Without its publication the task fails, and Connect leaves it so.
    _stop(service)
    service.sql("DROP PUBLICATION fluxora_outbox")
    _resume(service)
    _await(lambda: service.connect.connectors(service.name)[service.name].failures, 120)
    watcher.look()
    assert mine()
    service.sql("CREATE PUBLICATION fluxora_outbox FOR TABLE fluxora.outbox WITH (publish = 'insert')")
    sent = service.publish(events, 5)
    _await(well, 120)
    found = topic(events).read(lambda messages: len(messages) >= 5)
    assert bodies(found) == sorted(message.payload for message in sent)
    assert REGISTRY.get_sample_value("fluxora_connector_restarts_total", {"connector": service.name})

    def active() -> bool:
        # The look before may have been the one that saw the connector restarted but not yet at its slot.
        watcher.look()
        return REGISTRY.get_sample_value("fluxora_slot_active", {"slot": service.name}) == 1

    _await(active, 120)

    service.connect.delete(service.name)
    sent = service.publish(events, 5, start=5)
    _await(well, 120)
    topic(events).read(lambda messages: {m.payload for m in sent} <= {m.value() for m in messages})
    assert REGISTRY.get_sample_value("fluxora_connector_restored_total", {"connector": service.name}) == 1


def test_a_row_for_a_missing_topic_makes_it_and_holds_up_nothing(
    service: Service, addresses: Addresses, new_name: Callable[[str], str], topic: Callable[[str], Topic]
) -> None:
    service.register()
    missing = new_name("missing")
    sent = service.publish(missing, 3)
    admin = AdminClient({"bootstrap.servers": addresses.kafka})
    deadline = time.monotonic() + 120
    while missing not in partitions_by_topic(admin):
        assert time.monotonic() < deadline, "Connect did not make the topic"
        time.sleep(0.2)
    found = topic(missing).read(lambda messages: len(messages) >= 3)
    assert {message.value() for message in found} == {message.payload for message in sent}


def test_a_database_that_is_closed_for_a_while_is_waited_for(
    service: Service, events: str, topic: Callable[[str], Topic]
) -> None:
    service.register()
    database = make_url(service.url).database
    admin = create_engine(
        sqlalchemy_url(service.addresses.database_url), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    with admin.connect() as connection:
        connection.execute(text(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'))
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :d"), {"d": database}
        )
        time.sleep(5)
        connection.execute(text(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true'))
    sent = service.publish(events, 5)
    found = topic(events).read(lambda messages: len(messages) >= 5)
    assert bodies(found) == sorted(message.payload for message in sent)


def test_the_slot_is_one_that_standbys_copy(service: Service) -> None:
    service.register()

    def taken() -> Row[Any] | None:
        """A task that runs takes its slot a moment later."""
        with service.engine.connect() as connection:
            return connection.execute(
                text("SELECT failover FROM pg_replication_slots WHERE slot_name = :name AND active"),
                {"name": service.name},
            ).one_or_none()

    assert _await(taken, 60).failover


def test_an_equal_configuration_is_not_sent_again(service: Service) -> None:
    service.register()
    assert not service.connect.put(service.name, configuration(service.url))
    assert service.connect.put(service.name, configuration(service.url, poll_interval_ms=20))


def _await_confirmed(service: Service) -> None:
    """Wait until Connect has stored the connector's position."""

    def stored() -> bool:
        answer = httpx.get(f"{service.addresses.connect}/connectors/{service.name}/offsets", timeout=30)
        return answer.is_success and bool(answer.json()["offsets"])

    _await(stored, 120)


def _stop(service: Service) -> None:
    httpx.put(f"{service.addresses.connect}/connectors/{service.name}/stop", timeout=30).raise_for_status()

    def free() -> bool:
        with service.engine.connect() as connection:
            state = slot_state(connection, service.name)
        return state is not None and not state.active

    _await(free, 120)


def _resume(service: Service) -> None:
    httpx.put(f"{service.addresses.connect}/connectors/{service.name}/resume", timeout=30).raise_for_status()


def _await(condition: Callable[[], T], timeout_s: float) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s} s")
