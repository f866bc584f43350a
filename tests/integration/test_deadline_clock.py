"""The clock's claims on a real database: how often a deadline is produced that nobody folds."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from saga_processors.clock import Clock
from saga_processors.settings import ProcessorSettings
from tests.integration.test_processor import database
from tests.platform import Platform

__all__ = ["database"]


class Brokers:
    """Stand where the producer would be."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.gone = False

    def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Callable[..., None]) -> None:
        self.keys.append(key.decode())

    def flush(self, timeout: float) -> int:
        return 1 if self.gone else 0


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


@pytest.fixture
def clock(platform: Platform, database: str, brokers: Brokers) -> Clock:
    clock = Clock(
        ProcessorSettings(
            database_url=database, kafka_bootstrap_servers="127.0.0.1:9", schema_registry_url="http://127.0.0.1:9"
        )
    )
    clock._codec = platform.codec
    clock._producer = brokers  # type: ignore[assignment]
    return clock


def due(connection: psycopg.Connection[Any], late: float) -> str:
    """A transaction whose deadline passed ``late`` seconds ago."""
    id = str(uuid.uuid4())
    connection.execute(
        "INSERT INTO transactions (id, kind, name, state, services, partition, version, definition, progress, "
        "next_deadline, created_at, updated_at) VALUES (%s, 'saga', 's', 'EXECUTING', '{}', 0, 1, '{}', '{}', "
        "clock_timestamp() - %s * interval '1 second', now(), now())",
        (id, late),
    )
    return id


def claimed_for(connection: psycopg.Connection[Any], id: str) -> float:
    row = connection.execute(
        "SELECT extract(epoch FROM deadline_claimed_until - clock_timestamp())::float FROM transactions WHERE id = %s",
        (id,),
    ).fetchone()
    assert row is not None
    return float(row[0])


def let_time_pass(connection: psycopg.Connection[Any], seconds: float) -> None:
    connection.execute(
        "UPDATE transactions SET next_deadline = next_deadline - %(s)s * interval '1 second', "
        "deadline_claimed_until = deadline_claimed_until - %(s)s * interval '1 second'",
        {"s": seconds},
    )


def test_a_deadline_that_nobody_folds_is_produced_ever_more_seldom(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 0)
    hours = 2
    for _ in range(hours * 3600 // 5):
        clock.look(connection)
        let_time_pass(connection, 5)
    # At 0, 15, 30, 60, 120, 240 and 480 s, and then every 300 s; every 15 s would be 480 times.
    assert 20 <= len(brokers.keys) <= 32
    assert set(brokers.keys) == {id}
    clock.look(connection)
    assert claimed_for(connection, id) <= 300


def test_a_clock_that_died_after_the_claim_delays_a_deadline_by_the_lease(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 4000)
    clock.look(connection)
    assert 13 < claimed_for(connection, id) <= 15, "however late it is: nobody had claimed it"
    assert clock.look(connection) == 0
    let_time_pass(connection, 16)
    assert clock.look(connection) == 1
    assert brokers.keys == [id, id]


def test_a_deadline_that_the_brokers_did_not_take_is_due_as_before(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 100)
    for _ in range(3):
        brokers.gone = True
        with pytest.raises(ConnectionError):
            clock.look(connection)
        brokers.gone = False
    assert clock.look(connection) == 1
    assert brokers.keys == [id] * 4
    assert claimed_for(connection, id) <= 15
