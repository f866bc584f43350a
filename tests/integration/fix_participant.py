"""Fixtures for tests on the real stack: databases of their own, and what a test asks of Kafka."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from connectors import Connect
from deploy.stack import Stack
from participant import migrations
from participant.settings import sqlalchemy_url
from schemas import Codec, register_all


@dataclass(frozen=True)
class Addresses:
    """Where the parts of the stack are."""

    database_url: str
    kafka: str
    connect: str
    registry: str

    def url_of(self, database: str) -> str:
        return make_url(self.database_url).set(database=database).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def addresses(stack: Stack) -> Addresses:
    """Of the session's own stack, never of one that somebody has exported."""
    endpoints = stack.endpoints()
    return Addresses(
        database_url=endpoints["DATABASE_URL"],
        kafka=endpoints["KAFKA_BOOTSTRAP_SERVERS"],
        connect=endpoints["CONNECT_URL"],
        registry=endpoints["SCHEMA_REGISTRY_URL"],
    )


@pytest.fixture(scope="session")
def codec(addresses: Addresses) -> Iterator[Codec]:
    register_all(addresses.registry)
    codec = Codec(addresses.registry)
    yield codec
    codec.close()


@pytest.fixture(scope="session")
def connect(addresses: Addresses) -> Iterator[Connect]:
    with Connect(addresses.connect) as client:
        yield client


@pytest.fixture
def new_name() -> Callable[[str], str]:
    """A name nobody has used, for a database, a service or a topic."""
    return lambda word: f"{word}_{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="module")
def database_url(addresses: Addresses) -> Iterator[str]:
    """An empty database of the test module's own; removed with its slot and connector."""
    name = f"t_{uuid.uuid4().hex[:10]}"
    yield from _database(addresses, name)


@pytest.fixture
def fresh_database_url(addresses: Addresses) -> Iterator[str]:
    """An empty database of one test's own."""
    yield from _database(addresses, f"t_{uuid.uuid4().hex[:10]}")


def _database(addresses: Addresses, name: str) -> Iterator[str]:
    admin = create_engine(sqlalchemy_url(addresses.database_url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    yield addresses.url_of(name)
    drop_database(addresses, name)
    admin.dispose()


def drop_database(addresses: Addresses, name: str) -> None:
    """Remove a database with its connector and slot."""
    with Connect(addresses.connect) as client:
        client.delete(f"fluxora_{name}")
    admin = create_engine(sqlalchemy_url(addresses.database_url), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    _drop_slots(admin, name)
    with admin.connect() as connection:
        connection.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    admin.dispose()


def _drop_slots(admin: Engine, database: str) -> None:
    """Drop the database's slots, once their senders have gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with admin.connect() as connection:
            slots = connection.execute(
                text("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = :database"),
                {"database": database},
            ).all()
            if not slots:
                return
            for name, pid in slots:
                if pid is not None:
                    connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                    continue
                # A task that is just being stopped may take it once more since the look.
                with contextlib.suppress(OperationalError):
                    connection.execute(text("SELECT pg_drop_replication_slot(:name)"), {"name": name})
        time.sleep(0.1)
    pytest.fail(f"the slots of {database} are still in use")


@pytest.fixture(scope="module")
def migrated_url(database_url: str) -> str:
    migrations.upgrade(database_url)
    return database_url


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlalchemy_url(migrated_url))
    yield engine
    engine.dispose()


class Topic:
    """Reads a whole topic from its beginning, as any consumer would."""

    def __init__(self, bootstrap: str, name: str) -> None:
        self.name = name
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": f"test-{uuid.uuid4()}", "enable.auto.commit": False}
        )

    def read(self, enough: Callable[[list[Message]], bool], timeout_s: float = 60) -> list[Message]:
        """Return all records, as soon as they are enough; fails when they are not in time."""
        partitions = self._consumer.list_topics(self.name, timeout=10).topics[self.name].partitions
        self._consumer.assign([TopicPartition(self.name, p, 0) for p in partitions])
        found: list[Message] = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for message in self._consumer.consume(1000, timeout=0.1):
                if message.error() is None:
                    found.append(message)
            if enough(found):
                return found
        pytest.fail(f"{self.name}: {len(found)} records after {timeout_s} s, which is not what was awaited")

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def topic(addresses: Addresses) -> Iterator[Callable[[str], Topic]]:
    opened: list[Topic] = []

    def open_topic(name: str) -> Topic:
        opened.append(Topic(addresses.kafka, name))
        return opened[-1]

    yield open_topic
    for one in opened:
        one.close()


def headers_of(message: Message) -> dict[str, str]:
    """A record's headers as text; those without a value are left out."""
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    return {key: value.decode() for key, value in headers if value is not None}
