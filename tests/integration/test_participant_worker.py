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
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from sqlalchemy import create_engine, text

from fluxora.topics import ensure_topics, service_topics
from participant import migrations
from participant.settings import sqlalchemy_url
from schemas import Codec
from tests.integration.fix_participant import Stack, Topic


class Running:
    """A service, its database and what was sent to it."""

    def __init__(self, stack: Stack, codec: Codec, name: str, database_url: str) -> None:
        self.name = name
        self.stack = stack
        self.codec = codec
        self.database_url = database_url
        self.engine = create_engine(sqlalchemy_url(database_url))
        self.producer = Producer({"bootstrap.servers": stack.kafka, "partitioner": "murmur2_random"})
        self.processes: list[subprocess.Popen[bytes]] = []
        ensure_topics(AdminClient({"bootstrap.servers": stack.kafka}), service_topics(name))
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

    def await_replies(self, number: int, timeout_s: float = 60) -> Counter[tuple[str, str]]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := self.replies()).total() >= number:
                return found
            time.sleep(0.1)
        pytest.fail(f"{self.replies().total()} of {number} replies after {timeout_s} s")

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
def running(stack: Stack, codec: Codec, new_name: Callable[[str], str], fresh_database_url: str) -> Iterator[Running]:
    service = Running(stack, codec, new_name("billing"), fresh_database_url)
    yield service
    service.close()


@pytest.mark.parametrize("point", ["participant.before_commit", "participant.after_commit"])
def test_a_worker_killed_at_its_commit_leaves_one_row_and_one_reply_a_command(running: Running, point: str) -> None:
    transactions = [uuid.uuid4() for _ in range(300)]
    sent = [running.send(one) for one in transactions]
    running.producer.flush()
    for visit in (1, 2):
        process = running.start(FLUXORA_CRASH_AT=f"{point}:{visit}", FLUXORA_BATCH_LIMIT="50")
        assert process.wait(timeout=60) == 137
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
    headers = [{key: (value or b"").decode() for key, value in letter.headers()} for letter in letters]
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
    assert process.wait(timeout=10) == 0
    for _ in range(100):
        running.send(uuid.uuid4())
    running.producer.flush()
    running.start()
    assert set(running.await_replies(101).values()) == {1}


def test_a_stopped_worker_that_wakes_up_as_a_zombie_changes_nothing(running: Running) -> None:
    """SIGSTOP past the session timeout; a second worker takes over; SIGCONT."""
    first = running.start(FLUXORA_BATCH_LIMIT="5")
    sent = [running.send(uuid.uuid4()) for _ in range(200)]
    running.producer.flush()
    running.await_replies(1)
    first.send_signal(signal.SIGSTOP)
    sent += [running.send(uuid.uuid4()) for _ in range(200)]
    running.producer.flush()
    running.start()
    running.await_replies(200)
    time.sleep(1)
    first.send_signal(signal.SIGCONT)
    replies = running.await_replies(400)
    time.sleep(2)
    assert running.replies() == replies == Counter({(command_id, "DONE"): 1 for command_id in sent})
    assert first.poll() is None, "a zombie goes on as a member of the group"
