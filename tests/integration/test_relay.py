"""The relay as a process, between the real Kafka and services that hang, answer and count."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy.stack import Stack
from fluxora.topics import PLATFORM, ensure_topics
from outbox_relay.intake import GROUP, TOPIC
from saga_processors.partitioning import partition_of
from schemas import Codec

PROJECT = Path(__file__).parents[2]


class Service:
    """An HTTP service, and on the same port a registry that knows it."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, dict[str, str], Any]] = []
        self.release = threading.Event()
        self.registry_status = self.status = 200
        self.catalog: list[dict[str, Any]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._say(service.registry_status, service.catalog)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.calls.append((time.time(), self.path, dict(self.headers), body))
                if self.path == "/hang":
                    service.release.wait(120)
                    self.close_connection = True
                elif self.path == "/refuse":
                    self._say(409, {"detail": "sold out"})
                else:
                    self._say(service.status, {"got": body})

            def _say(self, status: int, answer: Any) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Hundreds of calls are not worth a line each."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.catalog = [{"ServiceAddress": "127.0.0.1", "ServicePort": self.port}]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def keys(self, path: str | None = None) -> Counter[str]:
        return Counter(headers["Idempotency-Key"] for _, at, headers, _ in self.calls if path in (None, at))

    def await_calls(self, number: int, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while len(self.calls) < number:
            assert time.monotonic() < deadline, f"{len(self.calls)} calls and not {number}"
            time.sleep(0.05)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class Running:
    """Relays on a Kafka of their own, what they are sent, and what they reply."""

    def __init__(self, stack: Stack) -> None:
        self.environment = stack.endpoints()
        self.codec = Codec(self.environment["SCHEMA_REGISTRY_URL"])
        kafka = self.environment["KAFKA_BOOTSTRAP_SERVERS"]
        self.producer = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random", "linger.ms": 0})
        self._consumer = Consumer(
            {"bootstrap.servers": kafka, "group.id": f"t-{uuid.uuid4()}", "enable.auto.commit": False}
        )
        self._group = Consumer({"bootstrap.servers": kafka, "group.id": GROUP, "enable.auto.commit": False})
        partitions = (
            self._consumer.list_topics("fluxora.transactions", timeout=30).topics["fluxora.transactions"].partitions
        )
        self._consumer.assign([TopicPartition("fluxora.transactions", p, 0) for p in partitions])
        self._replies: list[tuple[float, dict[str, Any]]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._sent: dict[str, tuple[str, bytes]] = {}

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox_relay"],
            cwd=PROJECT,
            env={
                **os.environ,
                **self.environment,
                "FLUXORA_INSTANCE": "test",
                "FLUXORA_ALLOWED_HOSTS": "127.0.0.0/8",
                "FLUXORA_RELAY_REGISTRY_TTL_S": "0.1",
                "FLUXORA_RELAY_SESSION_TIMEOUT_S": "6",
                **environment,
            },
        )
        self.processes.append(process)
        return process

    def send(
        self,
        transaction: str,
        *,
        attempt: int = 1,
        operation: str = "ACTION",
        timeout_ms: int = 60_000,
        expires_in: float | None = None,
        **fields: Any,
    ) -> str:
        command_id = f"{transaction}:pay:{operation.lower()}:{attempt}"
        record = {
            "command_id": command_id,
            "transaction_id": transaction,
            "subject": "pay",
            "operation": operation,
            "attempt": attempt,
            "idempotency_key": f"{transaction}:pay:{operation.lower()}",
            "service_name": "payments",
            "service_url": None,
            "endpoint": "/pay",
            "body": '{"amount": 5}',
            "timeout_ms": timeout_ms,
            "expires_at": datetime.now(UTC)
            + timedelta(seconds=timeout_ms / 1000 if expires_in is None else expires_in),
            **fields,
        }
        self._sent[command_id] = transaction, self.codec.encode("fluxora.HttpCommand", record)
        self.send_again(command_id)
        return command_id

    def send_again(self, command_id: str) -> None:
        """As a processor does that crashed before it noted what it had published."""
        self.send_raw(*self._sent[command_id])

    def send_raw(self, key: str, value: bytes) -> None:
        self.producer.produce(TOPIC, key=key, value=value, headers={"traceparent": "00-ab-cd-01"})
        self.producer.poll(0)

    def replies(
        self,
        *command_ids: str,
        at_least: int = 1,
        timeout_s: float = 90,
        supervised: dict[str, str] | None = None,
    ) -> dict[str, list[dict[str, Any]]]:
        """The replies to each of these, when there are so many of each.

        Args:
            supervised: a relay that gives up meanwhile is started again, in this environment.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if supervised is not None and (code := self.processes[-1].poll()) is not None:
                assert code == 75
                self.start(**supervised)
            for message in self._consumer.consume(1000, timeout=0.05):
                if message.error() is None:
                    self._replies.append((time.time(), self.codec.decode(message.value())[1]))
            found: dict[str, list[dict[str, Any]]] = {id: [] for id in command_ids}
            for at, reply in self._replies:
                if reply["command_id"] in found:
                    found[reply["command_id"]].append({**reply, "at": at})
            missing = [id for id, some in found.items() if len(some) < at_least]
            if not missing:
                return found
            assert time.monotonic() < deadline, f"{len(missing)} of {len(found)} have no reply after {timeout_s} s"

    def lag(self) -> int:
        """Commands of the topic that are not committed."""
        partitions = [
            TopicPartition(TOPIC, p) for p in self._group.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions
        ]
        lag = 0
        for committed in self._group.committed(partitions, timeout=30):
            _, end = self._group.get_watermark_offsets(committed, timeout=30)
            lag += end - max(committed.offset, 0)
        return lag

    def await_lag(self, lag: int, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while self.lag() != lag:
            assert time.monotonic() < deadline, f"the lag is {self.lag()} and not {lag}"
            time.sleep(0.1)

    def apart(self) -> tuple[str, str]:
        """Two ids whose commands are in different partitions."""
        partitions = len(self._group.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions)
        (first,) = ids(1)
        while partition_of((second := ids(1)[0]).encode(), partitions) == partition_of(first.encode(), partitions):
            pass
        return first, second

    def exchange(self, *, at_least: int = 1) -> dict[str, Any]:
        """One command more, and the reply to it: what was sent before has been taken."""
        command_id = self.send(str(uuid.uuid4()))
        return self.replies(command_id, at_least=at_least)[command_id][0]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)
        self.processes.clear()

    def close(self) -> None:
        self.stop()
        self.producer.flush(10)
        self._consumer.close()
        self._group.close()
        self.codec.close()


@pytest.fixture(scope="module")
def brokers(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Kafka in which no relay runs but those that a test starts with its own settings; the rest is the session's."""
    base = int(os.environ.get("FLUXORA_TEST_PORT_BASE", "28600")) + 50
    others = {name: stack.endpoints()[name] for name in ("DATABASE_URL", "CONNECT_URL", "SCHEMA_REGISTRY_URL")}
    with Stack(tmp_path_factory.mktemp("relay"), base, only="stack", environment=others) as brokers:
        ensure_topics(AdminClient({"bootstrap.servers": brokers.endpoints()["KAFKA_BOOTSTRAP_SERVERS"]}), PLATFORM)
        yield brokers


@pytest.fixture
def relay(brokers: Stack) -> Iterator[Running]:
    running = Running(brokers)
    yield running
    running.close()


@pytest.fixture
def service() -> Iterator[Callable[[], Service]]:
    made: list[Service] = []

    def make() -> Service:
        made.append(Service())
        return made[-1]

    yield make
    for one in made:
        one.close()


def ids(number: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(number)]


def test_a_command_becomes_a_call_and_its_answer_an_input(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    (transaction,) = ids(1)
    done = relay.send(transaction)
    refused = relay.send(transaction, attempt=2, endpoint="refuse")
    voted = relay.send(transaction, operation="PREPARE", service_url=payments.url, endpoint="transaction/prepare")
    away = relay.send(transaction, attempt=3, service_url="http://10.0.0.1", endpoint="/x")
    absolute = relay.send(transaction, attempt=4, endpoint=f"{payments.url}/elsewhere")
    found = relay.replies(done, refused, voted, away, absolute)
    reply = found[done][0]
    assert (reply["outcome"], json.loads(reply["result"]), reply["step"]) == ("DONE", {"got": {"amount": 5}}, "pay")
    assert (found[refused][0]["outcome"], found[refused][0]["reason"]) == ("REFUSED", "HTTP 409: sold out")
    assert (found[voted][0]["outcome"], found[voted][0]["participant"]) == ("DONE", "pay")
    assert found[away][0]["outcome"] == "FAILED"
    assert "not on the allow-list" in found[away][0]["reason"]
    assert found[absolute][0]["outcome"] == "DONE"
    call = next(headers for _, path, headers, _ in payments.calls if path == "/pay")
    assert call["Idempotency-Key"] == f"{transaction}:pay:action"
    assert call["Fluxora-Transaction-Id"] == transaction
    assert call["Fluxora-Step"] == "pay"
    assert call["Fluxora-Attempt"] == "1"
    assert call["traceparent"] == "00-ab-cd-01"
    relay.await_lag(0)


def test_a_service_that_hangs_holds_up_no_other(relay: Running, service: Callable[[], Service]) -> None:
    payments, stuck = service(), service()
    stuck_map = json.dumps({"payments": payments.url, **{f"stuck{i}": stuck.url for i in range(20)}})
    relay.start(FLUXORA_SERVICE_MAP=stuck_map, FLUXORA_RELAY_SERVICE_WAITING="600")
    # Twenty services hang, with more calls than there are places, and one of them with more than may wait.
    hanging = [
        relay.send(id, service_name=f"stuck{i % 20 if i < 1_000 else 0}", endpoint="/hang", timeout_ms=120_000)
        for i, id in enumerate(ids(1_800))
    ]
    deadline = time.monotonic() + 90
    while len(stuck.calls) < 400:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    quick = [relay.send(id) for id in ids(500)]
    # None of those that hang ends before it is released.
    found = relay.replies(*quick)
    assert all(replies[0]["outcome"] == "DONE" for replies in found.values())
    assert relay.lag() > 500, "what hangs is not committed"
    stuck.release.set()
    outcomes = Counter(replies[0]["outcome"] for replies in relay.replies(*hanging).values())
    # Some did not fit the queue and were answered at once; a connection that closes leaves its call unknown.
    assert set(outcomes) == {"UNKNOWN", "FAILED"}
    overloaded = [
        r[0] for r in relay.replies(*hanging).values() if "commands waiting for stuck" in (r[0]["reason"] or "")
    ]
    assert overloaded
    relay.await_lag(0)


def test_a_service_whose_prepares_hang_is_told_what_was_decided_and_not_asked_after_it(
    relay: Running, service: Callable[[], Service]
) -> None:
    payments = service()
    relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_RELAY_SERVICE_CONCURRENCY="4")
    hanging = [relay.send(id, operation="PREPARE", endpoint="/hang", timeout_ms=120_000) for id in ids(4)]
    payments.await_calls(4)
    # These wait behind them: of each transaction one that asks, and then what was decided about it.
    pairs = [("PREPARE", "ABORT"), ("PREPARE", "COMMIT"), ("ACTION", "COMPENSATION")]
    over = {id: (relay.send(id, operation=asks), decides) for id, (asks, decides) in zip(ids(3), pairs, strict=True)}
    waiting = relay.send(ids(1)[0])
    decided = [relay.send(id, operation=decides) for id, (_, decides) in over.items()]
    found = relay.replies(*decided)
    assert {replies[0]["outcome"] for replies in found.values()} == {"DONE"}
    payments.release.set()
    relay.replies(*hanging, waiting)
    # Committed, so nothing waits any more: what was overtaken was neither called nor answered.
    relay.await_lag(0)
    called = Counter((h["Fluxora-Transaction-Id"], h["Fluxora-Operation"]) for _, _, h, _ in payments.calls)
    assert {id: [what for of, what in called if of == id] for id in over} == {id: [d] for id, (_, d) in over.items()}
    assert max(called.values()) == 1


@pytest.mark.parametrize("point", ["relay.after_call", "relay.after_reply"])
def test_a_relay_killed_at(point: str, relay: Running, service: Callable[[], Service], tmp_path: Path) -> None:
    payments = service()
    killed = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_CRASH_AT=f"{point}:20")
    (under_way,) = ids(1)
    unclear = relay.send(under_way, endpoint="/hang", timeout_ms=280_000)
    payments.await_calls(1)
    transactions = ids(60)
    sent = [relay.send(id) for id in transactions]
    relay.producer.flush()
    assert killed.wait(60) == 137
    payments.release.set()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    found = relay.replies(*sent)
    assert {reply["outcome"] for replies in found.values() for reply in replies} == {"DONE"}
    assert {reply["outcome"] for reply in relay.replies(unclear)[unclear]} == {"UNKNOWN"}
    keys = payments.keys()
    assert set(keys) == {f"{id}:pay:action" for id in (*transactions, under_way)}, "a repeated call has the same key"
    assert keys.pop(f"{under_way}:pay:action") == 2, "what had been called and not answered was called again"
    assert max(keys.values()) <= 2
    relay.await_lag(0)


def test_what_has_expired_is_answered_without_a_call(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    relay.exchange()
    sent = [relay.send(id, expires_in=-1) for id in ids(5)]
    votes = [relay.send(id, operation="PREPARE", expires_in=-1) for id in ids(5)]
    for replies in relay.replies(*sent).values():
        assert replies[0]["outcome"] == "FAILED"
        assert "expired" in replies[0]["reason"]
    assert {replies[0]["outcome"] for replies in relay.replies(*votes).values()} == {"REFUSED"}
    assert len(payments.calls) == 1


# ── Second copies, and what a relay before this one has done ──────────────────────────────────────────────────


def test_a_command_that_is_published_again_is_called_once(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    # In partitions of their own: nothing behind the one under way is committed, whatever it is.
    first, second = relay.apart()
    under_way = relay.send(first, endpoint="/hang", timeout_ms=280_000)
    answered = relay.send(second)
    relay.replies(answered)
    for command_id in (under_way, answered):
        relay.send_again(command_id)
    relay.producer.flush()
    relay.await_lag(2)  # the one under way, and its copy
    payments.release.set()
    relay.replies(under_way)
    relay.await_lag(0)
    assert set(payments.keys().values()) == {1}
    assert {len(replies) for replies in relay.replies(under_way, answered).values()} == {1}


def test_a_refusal_that_was_told_before_the_relay_died_is_not_called_again(
    relay: Running, service: Callable[[], Service]
) -> None:
    payments = service()
    catalog, payments.catalog = payments.catalog, []
    killed = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_CRASH_AT="relay.after_reply")
    failed = relay.send(*ids(1))
    assert killed.wait(60) == 137
    assert relay.replies(failed)[failed][0]["outcome"] == "FAILED"
    assert relay.lag() == 1, "it comes again"
    payments.catalog = catalog
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    assert relay.exchange()["outcome"] == "DONE"
    relay.await_lag(0)
    assert set(payments.keys()) & {failed.removesuffix(":1")} == set(), "the machine has gone on from FAILED"
    assert len(relay.replies(failed)[failed]) == 1
    # The same, published again by a processor after the relay has come back, and after another restart.
    relay.send_again(failed)
    relay.stop()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    relay.send_again(failed)
    relay.exchange()
    relay.await_lag(0)
    assert len(payments.calls) == 2
    assert len(relay.replies(failed)[failed]) == 1


def test_a_no_after_a_call_whose_answer_died_with_the_relay_leaves_it_open_what_was_done(
    relay: Running, service: Callable[[], Service]
) -> None:
    payments = service()
    killed = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_CRASH_AT="relay.after_call")
    called = relay.send(*ids(1))
    assert killed.wait(60) == 137
    payments.status = 409
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    (reply,) = relay.replies(called)[called]
    assert (reply["outcome"], len(payments.calls)) == ("UNKNOWN", 2)
    assert reply["reason"].startswith("HTTP 409")
    # It refuses what no relay before can have called.
    assert relay.exchange()["outcome"] == "REFUSED"


def test_a_log_too_long_to_read_withholds_the_call(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    killed = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_CRASH_AT="relay.after_reply")
    called = relay.send(*ids(1))
    assert killed.wait(60) == 137
    relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_RELAY_TAKEOVER_RECORDS="0")
    _, reply = relay.replies(called, at_least=2)[called]
    assert reply["outcome"] == "UNKNOWN"
    assert "0 may be read" in reply["reason"]
    assert len(payments.calls) == 1


def test_a_registry_that_is_away_does_not_stop_calls(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    assert relay.replies(relay.send(*ids(1)))
    payments.registry_status = 500
    time.sleep(0.3)
    found = relay.replies(*(relay.send(id) for id in ids(20)))
    assert {replies[0]["outcome"] for replies in found.values()} == {"DONE"}
    (unknown,) = relay.replies(relay.send(*ids(1), service_name="never-seen")).values()
    assert unknown[0]["outcome"] == "FAILED"
    assert "registry cannot say" in unknown[0]["reason"]
    payments.registry_status, payments.catalog = 200, []
    time.sleep(1.2)
    relay.replies(relay.send(*ids(1)))
    time.sleep(0.3)
    (gone,) = relay.replies(relay.send(*ids(1))).values()
    assert (gone[0]["outcome"], gone[0]["reason"]) == (
        "FAILED",
        "not called: the service registry has no instance of 'payments'",
    )


@pytest.mark.parametrize("operation", ["ACTION", "PREPARE"])
def test_an_instance_that_cannot_be_connected_to_is_passed_over(
    operation: str, relay: Running, service: Callable[[], Service]
) -> None:
    payments, dead = service(), service()
    dead.close()
    payments.catalog = [{"ServiceAddress": "127.0.0.1", "ServicePort": one.port} for one in (dead, payments)]
    relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_RELAY_REGISTRY_TTL_S="600")
    found = relay.replies(*(relay.send(id, operation=operation) for id in ids(20)))
    assert {replies[0]["outcome"] for replies in found.values()} == {"DONE"}
    assert len(payments.calls) == 20


def test_a_service_that_was_started_anew_elsewhere_is_found_before_its_old_address_is_forgotten(
    relay: Running, service: Callable[[], Service]
) -> None:
    registry, before, after = service(), service(), service()
    registry.catalog = before.catalog
    relay.start(SERVICE_REGISTRY_URL=registry.url, FLUXORA_RELAY_REGISTRY_TTL_S="600")
    assert relay.exchange()["outcome"] == "DONE"
    time.sleep(1.1)
    before.close()
    registry.catalog = after.catalog
    assert relay.exchange()["outcome"] == "DONE"
    assert (len(before.calls), len(after.calls)) == (1, 1)


def test_poison_is_dead_lettered_and_passed_over(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    poison = f"poison-{uuid.uuid4()}"
    relay.send_raw(poison, b"\x00\x00\x00\x00\x01 what")
    relay.send_raw(poison, b"{}")
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    assert relay.replies(relay.send(*ids(1)))
    relay.await_lag(0)
    reader = Consumer(
        {
            "bootstrap.servers": relay.environment["KAFKA_BOOTSTRAP_SERVERS"],
            "group.id": poison,
            "enable.auto.commit": False,
        }
    )
    reader.assign([TopicPartition(f"{TOPIC}.dlq", 0, 0)])
    letters: list[Message] = []
    deadline = time.monotonic() + 60
    while len(letters) < 2:
        letters += [m for m in reader.consume(1000, timeout=0.2) if m.key() == poison.encode()]
        assert time.monotonic() < deadline, f"{len(letters)} dead letters"
    reader.close()
    headers = dict(cast("list[tuple[str, bytes]]", letters[1].headers()))
    assert headers["__connect.errors.topic"] == TOPIC.encode()
    assert b"Confluent wire format" in headers["__connect.errors.exception.message"]


def test_a_stop_finishes_what_runs_and_commits_it(relay: Running, service: Callable[[], Service]) -> None:
    payments = service()
    process = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_RELAY_STOP_GRACE_S="30")
    relay.exchange()  # it takes commands by now, so that the next one does not expire before
    slow = relay.send(*ids(1), endpoint="/hang", timeout_ms=8_000)
    relay.producer.flush()
    payments.await_calls(2)
    process.send_signal(signal.SIGTERM)
    (reply,) = relay.replies(slow)[slow]
    assert reply["outcome"] == "UNKNOWN"
    assert process.wait(60) == 0
    assert relay.lag() == 0


def test_two_relays_share_the_work_and_one_takes_over_from_the_other(
    relay: Running, service: Callable[[], Service]
) -> None:
    payments = service()
    environment = {"SERVICE_REGISTRY_URL": payments.url}
    first = relay.start(FLUXORA_INSTANCE="one", **environment)
    relay.start(FLUXORA_INSTANCE="two", **environment)
    transactions = []
    for round in range(20):
        transactions += (new := ids(20))
        for id in new:
            relay.send(id)
        if round == 10:
            first.kill()
        time.sleep(0.2)
    found = relay.replies(*(f"{id}:pay:action:1" for id in transactions))
    assert {reply["outcome"] for replies in found.values() for reply in replies} == {"DONE"}
    relay.await_lag(0)


def test_a_relay_that_loses_the_brokers_ends_and_the_next_one_loses_no_command(
    relay: Running, service: Callable[[], Service], brokers: Stack
) -> None:
    payments = service()
    ended = relay.start(SERVICE_REGISTRY_URL=payments.url, FLUXORA_RELAY_REPLY_TIMEOUT_S="5")
    relay.exchange()
    sent = [relay.send(id, endpoint="/hang") for id in ids(30)]
    payments.await_calls(31)
    relay.await_lag(30)
    # Frozen, so that it is away for as long as it takes; then killed, so that what it had in memory only is gone.
    broker = brokers.pid("kafka")
    os.kill(broker, signal.SIGSTOP)
    payments.release.set()
    assert ended.wait(60) == 75
    os.kill(broker, signal.SIGKILL)
    relay.start(SERVICE_REGISTRY_URL=payments.url)
    found = relay.replies(*sent, timeout_s=120, supervised={"SERVICE_REGISTRY_URL": payments.url})
    assert {reply["outcome"] for replies in found.values() for reply in replies} <= {"DONE", "UNKNOWN"}
    relay.await_lag(0, timeout_s=60)


def test_health_is_told(relay: Running, service: Callable[[], Service]) -> None:
    port = int(os.environ.get("FLUXORA_TEST_PORT_BASE", "28600")) + 90
    relay.start(SERVICE_REGISTRY_URL=service().url, FLUXORA_HEALTH_PORT=str(port))
    assert relay.replies(relay.send(*ids(1)))
    for path in ("health", "ready"):
        assert httpx.get(f"http://127.0.0.1:{port}/{path}").status_code == 200
    deadline = time.monotonic() + 30  # the reply is in the topic before the relay has heard of it
    counted = 'fluxora_relay_calls_total{operation="ACTION",outcome="DONE"} 1.0'
    while counted not in (metrics := httpx.get(f"http://127.0.0.1:{port}/metrics").text):
        assert time.monotonic() < deadline, metrics
        time.sleep(0.05)
    assert 'fluxora_relay_call_seconds_count{service="payments"} 1.0' in metrics
