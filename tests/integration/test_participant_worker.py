"""A service as a process, on the real Kafka and PostgreSQL, killed where it hurts."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import create_engine, text

from fluxora.topics import ensure_topics, service_topics
from participant import membership, migrations
from participant.membership import Deaf, Hearing, take_up
from participant.settings import sqlalchemy_url
from schemas import Codec
from tests.integration.fix_participant import (
    Addresses,
    Topic,
    addresses,
    codec,
    fresh_database_url,
    headers_of,
    new_name,
    topic,
)

__all__ = ["addresses", "codec", "fresh_database_url", "new_name", "topic"]  # fixtures


class Running:
    """A service, its database and what was sent to it."""

    def __init__(self, addresses: Addresses, codec: Codec, name: str, database_url: str) -> None:
        self.name = name
        self.addresses = addresses
        self.codec = codec
        self.database_url = database_url
        self.engine = create_engine(sqlalchemy_url(database_url))
        self.producer = Producer({"bootstrap.servers": addresses.kafka, "partitioner": "murmur2_random"})
        self.processes: list[subprocess.Popen[bytes]] = []
        ensure_topics(AdminClient({"bootstrap.servers": addresses.kafka}), service_topics(name))
        migrations.upgrade(database_url)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE bill (id uuid PRIMARY KEY, amount int)"))

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("participant_service.py")), self.name],
            env={**os.environ, "DATABASE_URL": self.database_url, "PYTHONPATH": str(Path.cwd()), **environment},
        )
        self.processes.append(process)
        return process

    def send(self, transaction: uuid.UUID, *, attempt: int = 1, final: bool = False, payload: str = "{}") -> str:
        command_id = f"{transaction}:bill:ACTION:{attempt}"
        record = {
            "command_id": command_id,
            "transaction_id": str(transaction),
            "saga_name": "order",
            "step": "bill",
            "command": "bill",
            "operation": "ACTION",
            "attempt": attempt,
            "final": final,
            "payload": payload,
        }
        self.send_raw(str(transaction), self.codec.encode("fluxora.StepCommand", record))
        return command_id

    def send_raw(self, key: str, value: bytes) -> None:
        self.producer.produce(f"{self.name}.commands", key=key, value=value, headers={"traceparent": "00-ab-cd-01"})
        self.producer.poll(0)

    def replies(self) -> Counter[tuple[str, str]]:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT payload FROM fluxora.outbox")).scalars()
            decoded = [self.codec.decode(bytes(row))[1] for row in rows]
        return Counter((reply["command_id"], reply["outcome"]) for reply in decoded)

    def await_replies(self, number: int, timeout_s: float = 120) -> Counter[tuple[str, str]]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := self.replies()).total() >= number:
                return found
            time.sleep(0.1)
        pytest.fail(f"{self.replies().total()} of {number} replies after {timeout_s} s")

    def await_in_transaction(self) -> None:
        """Wait until the service's handler holds a transaction open without doing anything in it."""
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = :name AND state = 'idle in transaction' AND now() - state_change > '0.3 s'"
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self.engine.connect() as connection:
                if connection.execute(query, {"name": f"fluxora-{self.name}"}).scalar_one():
                    return
            time.sleep(0.05)
        pytest.fail("the service did not come to its slow handler")

    def bills(self) -> set[uuid.UUID]:
        with self.engine.connect() as connection:
            return set(connection.execute(text("SELECT id FROM bill")).scalars())

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.engine.dispose()


@pytest.fixture
def running(
    addresses: Addresses, codec: Codec, new_name: Callable[[str], str], fresh_database_url: str
) -> Iterator[Running]:
    service = Running(addresses, codec, new_name("billing"), fresh_database_url)
    yield service
    service.close()


@pytest.mark.parametrize("point", ["participant.before_commit", "participant.after_commit"])
def test_a_worker_killed_at_its_commit_leaves_one_row_and_one_reply_a_command(running: Running, point: str) -> None:
    transactions = [uuid.uuid4() for _ in range(300)]
    sent = [running.send(one) for one in transactions]
    running.producer.flush()
    for visit in (1, 2):
        process = running.start(FLUXORA_CRASH_AT=f"{point}:{visit}", FLUXORA_BATCH_LIMIT="50")
        assert process.wait(timeout=120) == 137
    running.start(FLUXORA_BATCH_LIMIT="50")
    replies = running.await_replies(len(sent))
    assert replies == Counter({(command_id, "DONE"): 1 for command_id in sent})
    assert running.bills() == set(transactions)


def test_ten_kills_in_the_middle_of_the_work_lose_nothing_and_double_nothing(running: Running) -> None:
    transactions = []
    for _ in range(10):
        process = running.start(FLUXORA_BATCH_LIMIT="5", FLUXORA_INSTANCE="0")
        before = running.replies().total()
        for _ in range(400):
            transactions.append(uuid.uuid4())
            running.send(transactions[-1])
        running.producer.flush()
        running.await_replies(before + 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert running.replies().total() < len(transactions), "the kills came too late to hit anything"
    running.start(FLUXORA_INSTANCE="0")
    replies = running.await_replies(len(transactions))
    assert set(replies.values()) == {1}
    assert len(replies) == len(transactions)
    assert running.bills() == set(transactions)


def test_what_cannot_be_handled_is_dead_lettered_and_the_rest_goes_on(
    running: Running, topic: Callable[[str], Topic]
) -> None:
    running.start()
    running.send_raw("key", b"not avro at all")
    broken, fine = uuid.uuid4(), uuid.uuid4()
    running.send(broken, payload="this is not JSON")
    failing = running.send(broken, final=True, payload='{"raise": true}')
    done = running.send(fine)
    running.producer.flush()
    assert running.await_replies(2) == Counter({(failing, "FAILED"): 1, (done, "DONE"): 1})
    letters = topic(f"{running.name}.commands.dlq").read(lambda found: len(found) >= 3)
    assert len(letters) == 3
    headers = [headers_of(letter) for letter in letters]
    assert {h["__connect.errors.exception.class.name"] for h in headers} == {
        "schemas.errors.UndecodableRecord",
        "builtins.ValueError",
    }
    assert {h["__connect.errors.topic"] for h in headers} == {f"{running.name}.commands"}
    for name in ("partition", "offset", "connector.name", "task.id", "stage", "class.name"):
        assert all(h[f"__connect.errors.{name}"] for h in headers)
    assert all("Traceback" in h["__connect.errors.exception.stacktrace"] for h in headers)
    assert b"not avro at all" in {letter.value() for letter in letters}


def test_sigterm_finishes_the_batch_and_leaves(running: Running) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = running.start(FLUXORA_HEALTH_PORT=str(port))
    running.send(uuid.uuid4())
    running.producer.flush()
    running.await_replies(1)
    assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok", "reasons": []}
    assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    assert f'fluxora_commands_total{{operation="ACTION",outcome="DONE",service="{running.name}"}} 1.0' in (
        httpx.get(f"http://127.0.0.1:{port}/metrics").text
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    for _ in range(100):
        running.send(uuid.uuid4())
    running.producer.flush()
    running.start()
    assert set(running.await_replies(101).values()) == {1}


def test_a_worker_frozen_inside_a_transaction_loses_it_and_wakes_up_as_a_harmless_zombie(running: Running) -> None:
    """SIGSTOP past the session timeout, while it holds locks; a second worker takes over; SIGCONT."""
    sent = [running.send(uuid.uuid4()) for _ in range(50)]
    slow = running.send(uuid.uuid4(), payload='{"sleep": 1.5}')
    sent += [slow, *(running.send(uuid.uuid4()) for _ in range(50))]
    running.producer.flush()
    limit = {"FLUXORA_TRANSACTION_IDLE_LIMIT_S": "3"}
    first = running.start(**limit)
    running.await_in_transaction()
    first.send_signal(signal.SIGSTOP)
    sent += [running.send(uuid.uuid4()) for _ in range(50)]
    running.producer.flush()
    running.start(**limit)
    replies = running.await_replies(len(sent))
    first.send_signal(signal.SIGCONT)
    time.sleep(4)
    assert running.replies() == replies == Counter({(command_id, "DONE"): 1 for command_id in sent})
    assert len(running.bills()) == len(sent)
    assert first.poll() is None, "a zombie goes on as a member of the group"


def test_a_handler_that_pauses_for_too_long_fails_alone(running: Running) -> None:
    slow = running.send(uuid.uuid4(), payload='{"sleep": 5}')
    sent = [running.send(uuid.uuid4()) for _ in range(20)]
    running.producer.flush()
    running.start(FLUXORA_TRANSACTION_IDLE_LIMIT_S="3")
    replies = running.await_replies(21)
    assert replies == Counter({(slow, "FAILED"): 1, **{(command_id, "DONE"): 1 for command_id in sent}})


def test_a_partition_that_librdkafka_does_not_fetch_ends_the_member_and_an_idle_one_does_not(
    addresses: Addresses, new_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics are librdkafka's own words: an empty or renamed field would make every member deaf, or none."""
    monkeypatch.setattr(membership, "REPORT_EVERY_S", 0.2)
    monkeypatch.setattr(membership, "DEAF_AFTER_S", 5.0)
    name = new_name("hearing")
    ensure_topics(AdminClient({"bootstrap.servers": addresses.kafka}), service_topics(name))
    hearing = Hearing()
    consumer = Consumer(
        {
            **hearing.settings,
            "bootstrap.servers": addresses.kafka,
            "group.id": name,
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    assigned: list[tuple[str, int]] = []

    def take(member: Consumer, partitions: list[TopicPartition]) -> None:
        take_up(member, partitions, OFFSET_BEGINNING)
        assigned.extend((one.topic, one.partition) for one in partitions)

    def listen(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert consumer.poll(0.1) is None
            hearing.check(assigned)

    consumer.subscribe([f"{name}.commands"], on_assign=take)
    try:
        deadline = time.monotonic() + 30
        while not assigned:
            assert time.monotonic() < deadline, "no partitions"
            consumer.poll(0.1)
        listen(8)
        consumer.incremental_unassign([TopicPartition(*assigned[0])])
        with pytest.raises(Deaf, match=f"{assigned[0][0]}.{assigned[0][1]}. is assigned"):
            listen(30)
    finally:
        consumer.close()
