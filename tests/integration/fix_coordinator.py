"""Coordinators for tests: real processes on databases of their own, and a wire to PostgreSQL that can be cut."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from sqlalchemy import make_url

from coordinator import migrations
from deploy.stack import Stack
from schemas import register_all

ROOT = Path(__file__).parents[2]


class Wire:
    """Forwards a local port to PostgreSQL. ``cut`` is its crash, ``freeze`` a network that swallows packets."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._up = True
        self._flowing = threading.Event()
        self._flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._up = False
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        self._flowing.clear()

    def restore(self) -> None:
        self._up = True
        self._flowing.set()

    def close(self) -> None:
        self.restore()
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if not self._up:
                    client.close()
                    continue
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, selectors.DefaultSelector() as ready:
            with self._lock:
                if not self._up:
                    return  # cut since it was accepted
                self._open |= {client, server}
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            with suppress(OSError):
                while True:
                    for key, _ in ready.select():
                        self._flowing.wait()
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)


@dataclass
class Coordinator:
    """A running process, its database and a client."""

    url: str
    database_url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(repr=False)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Look at, or write, rows as the processors would."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def post(self, body: Any = None, **headers: str) -> httpx.Response:
        return self.client.post(
            "/sagas", json=body or saga(), headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    def counts(self) -> tuple[int, int]:
        """Rows of transactions and of the outbox."""
        ((transactions, outbox),) = self.sql(
            "SELECT (SELECT count(*) FROM public.transactions), (SELECT count(*) FROM fluxora.outbox)"
        )
        return transactions, outbox

    def end(self, *saga_ids: str, state: str = "COMPLETED") -> None:
        """Simulates the processor's transaction that ends sagas."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(
                "UPDATE public.transactions SET state = %s, version = 1, updated_at = now() WHERE id = ANY(%s::uuid[])",
                (state, list(saga_ids)),
            )
            for i in range(0, len(saga_ids), 200):
                connection.execute("SELECT pg_notify('fluxora_changed', %s)", (",".join(saga_ids[i : i + 200]),))


def saga(**changes: Any) -> dict[str, Any]:
    return {"name": "order", "steps": [{"name": "bill", "service_name": "tc-billing", "payload": {"n": 1}}]} | changes


@contextmanager
def running(database_url: str, *, reached_by: str | None = None, **settings: object) -> Iterator[Coordinator]:
    """Run a coordinator until the end of the block.

    Args:
        reached_by: the process's own way to the database, if not the test's.
        settings: as in ``coordinator.settings``, without the prefix.
    """
    environment = os.environ | {
        "DATABASE_URL": reached_by or database_url,
        "FLUXORA_COORDINATOR_PORT": "0",
        "PYTHONPATH": str(ROOT),
    }
    for name, value in settings.items():
        plain = name in ("kafka_bootstrap_servers", "schema_registry_url")
        environment[name.upper() if plain else f"FLUXORA_COORDINATOR_{name.upper()}"] = str(value)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        environment["FLUXORA_COORDINATOR_PORT"] = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{environment['FLUXORA_COORDINATOR_PORT']}"
    with (
        subprocess.Popen([sys.executable, "-m", "coordinator"], env=environment, cwd=ROOT) as process,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        try:
            eventually(lambda: client.get("/health").status_code == 200, 120)
            yield Coordinator(url, database_url, process, client)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def eventually(condition: Any, seconds: float = 60) -> None:
    """Wait until ``condition()`` holds."""
    until = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < until, "did not come to hold in time"
        time.sleep(0.05)


@contextmanager
def new_database() -> Iterator[str]:
    """A migrated database beside that of DATABASE_URL, dropped afterwards."""
    url = make_url(os.environ["DATABASE_URL"])
    name = f"coordinator_{uuid4().hex[:12]}"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            made = url.set(database=name).render_as_string(hide_password=False)
            migrations.upgrade(made)
            yield made
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def coordinator_database(stack: Stack) -> Iterator[str]:
    """The stack's conftest fixture has put its addresses, and no others, into the environment."""
    register_all(os.environ["SCHEMA_REGISTRY_URL"])
    admin = AdminClient({"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]})
    for made in admin.create_topics([NewTopic("tc-billing.commands", 1, 1)]).values():
        with suppress(Exception):  # it is there already
            made.result(20)
    with new_database() as url:
        yield url


@pytest.fixture(scope="module")
def coordinator(coordinator_database: str) -> Iterator[Coordinator]:
    with running(coordinator_database) as process:
        eventually(lambda: process.client.get("/ready").status_code == 200)
        yield process
