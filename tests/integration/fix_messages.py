"""Outbox Services for tests: real processes on databases of their own, and receivers that do as they are told."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

import participant.migrations
from deploy.stack import Stack
from outbox_relay.messages import migrations
from tests.integration.fix_coordinator import ROOT, eventually

#: Short enough for tests; what production has is in the settings.
FAST = {
    "retry_initial_seconds": 0.05,
    "retry_max_seconds": 0.2,
    "max_attempts": 4,
    # Not so short that a machine that stalls makes two attempts of one.
    "attempt_timeout_seconds": 10,
    "lease_seconds": 12,
    "poll_seconds": 0.1,
    "rules_interval_seconds": 0.1,
    "topics_seconds": 0.5,
}


@dataclass(frozen=True)
class Received:
    """What came to a receiver."""

    body: Any
    headers: dict[str, str]
    #: the answer that it got
    status: int

    @property
    def id(self) -> str:
        return self.headers["idempotency-key"]


class Receiver:
    """A service with POST /messages. ``answer`` says what a message gets: a status, after whatever it does before."""

    def __init__(self, answer: Callable[[Any, int], int] = lambda body, before: 200) -> None:
        #: Called with the body and how often this message has come before.
        self.answer = answer
        self.received: list[Received] = []
        lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                before = sum(one.id == headers["idempotency-key"] for one in list(receiver.received))
                status = receiver.answer(body, before) if self.path == "/messages" else 404
                with lock:
                    receiver.received.append(Received(body, headers, status))
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    pass  # the sender was killed

            def log_message(self, format: str, *args: object) -> None:
                """What matters is in ``received``."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def delivered(self) -> list[Any]:
        """Bodies that were answered 2xx, in their order."""
        return [one.body for one in self.received if one.status < 300]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """A running Outbox Service, its database and a client."""

    url: str
    database_url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(repr=False)

    def post(self, destination: str, payload: Any, *, headers: dict[str, str] | None = None, **more: Any) -> str:
        """Send a message; returns its id."""
        body = {"destination_service": destination, "payload": payload, **more}
        answer = self.client.post("/messages", json=body, headers=headers or {})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["message_id"])

    def get(self, message_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/messages/{message_id}")
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def until(self, message_id: str, status: str, seconds: float = 90) -> dict[str, Any]:
        eventually(lambda: self.get(message_id)["status"] == status, seconds)
        return self.get(message_id)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running(
    database_url: str, services: dict[str, str], *, environment: dict[str, str] | None = None, **settings: object
) -> Iterator[Service]:
    """Run an Outbox Service until the end of the block.

    Args:
        services: the static map of HTTP services.
        settings: as in ``outbox_relay.messages.settings``, without the prefix; FAST otherwise.
    """
    port = free_port()
    env = os.environ | {
        "DATABASE_URL": database_url,
        "FLUXORA_OUTBOX_PORT": str(port),
        "FLUXORA_SERVICE_MAP": json.dumps(services),
        "PYTHONPATH": str(ROOT),
        # The stack's own Outbox Service confirms for another database.
        "FLUXORA_OUTBOX_CONFIRM_GROUP": database_url.rpartition("/")[2],
        **{f"FLUXORA_OUTBOX_{name.upper()}": str(value) for name, value in (FAST | settings).items()},
        **(environment or {}),
    }
    url = f"http://127.0.0.1:{port}"
    with (
        subprocess.Popen([sys.executable, "-m", "outbox_relay.messages"], env=env, cwd=ROOT) as process,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        try:
            eventually(lambda: client.get("/health").status_code == 200, 120)
            yield Service(url, database_url, process, client)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise


@contextmanager
def receiving(answer: Callable[[Any, int], int] = lambda body, before: 200) -> Iterator[Receiver]:
    receiver = Receiver(answer)
    try:
        yield receiver
    finally:
        receiver.close()


class Receivers:
    """Receivers that one process knows from its start: a fresh one for each test."""

    def __init__(self, count: int) -> None:
        self._free = {f"receiver-{n}": Receiver() for n in range(count)}
        self.map = {name: receiver.url for name, receiver in self._free.items()}
        self._used: list[Receiver] = []

    def take(self, answer: Callable[[Any, int], int] = lambda body, before: 200) -> tuple[str, Receiver]:
        """Return one and its name as a destination."""
        name, receiver = self._free.popitem()
        receiver.answer = answer
        self._used.append(receiver)
        return name, receiver

    def close(self) -> None:
        for receiver in [*self._used, *self._free.values()]:
            receiver.close()


@pytest.fixture(scope="module")
def receivers() -> Iterator[Receivers]:
    receivers = Receivers(20)
    yield receivers
    receivers.close()


@pytest.fixture(scope="module")
def service(stack: Stack, receivers: Receivers) -> Iterator[Service]:
    """One process for the tests that need none of their own: starting it is most of their time."""
    services = receivers.map | {"dead": "http://127.0.0.1:9"}
    settings = {"prune_seconds": 0.3, "prune_rows": 2, "max_pending": 50, "count_seconds": 0.1}
    with migrated() as database, running(database, services, **settings) as it:
        yield it


@pytest.fixture
def messages_database(stack: Stack) -> Iterator[str]:
    """A database for the processes of one test: replicas that share one must know the same services."""
    with migrated() as database:
        yield database


@contextmanager
def migrated() -> Iterator[str]:
    """A migrated database of its own, dropped afterwards."""
    url = make_url(os.environ["DATABASE_URL"])
    name = f"messages_{uuid4().hex[:12]}"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            made = url.set(database=name).render_as_string(hide_password=False)
            participant.migrations.upgrade(made)
            migrations.upgrade(made)
            migrations.upgrade(made)
            yield made
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def sleeping(seconds: float, status: int = 200) -> Callable[[Any, int], int]:
    def answer(body: Any, before: int) -> int:
        time.sleep(seconds)
        return status

    return answer


__all__ = [
    "Receiver",
    "Receivers",
    "Service",
    "messages_database",
    "receivers",
    "receiving",
    "running",
    "service",
    "sleeping",
]
