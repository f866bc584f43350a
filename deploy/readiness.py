"""Probes: whether a part answers. Each makes one attempt of at most a few seconds."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
from confluent_kafka.admin import AdminClient

from deploy.parts import Probe

ATTEMPT_SECONDS = 3

# librdkafka reports refused connections: that is what a probe is made for.
_SILENT = logging.Logger("deploy.readiness", level=logging.CRITICAL)


def http_answers(url: str) -> Probe:
    """GET answers 200. Over a bare connection: a client library costs more than all that it is asked for here,
    and would honour a proxy from the environment, which must never stand between us and loopback."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "127.0.0.1", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
    if parts.username:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Authorization: Basic {b64encode(credentials.encode()).decode()}")
    request = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    async def attempt() -> bool:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=secure or None)
            try:
                writer.write(request)
                answer = await reader.readline()
            finally:
                writer.close()
        return answer.split()[1:2] == [b"200"]

    return attempt


def postgres_answers(url: str) -> Probe:
    """A new connection executes a query (during recovery and shutdown PostgreSQL refuses connections)."""

    async def attempt() -> bool:
        connection = await psycopg.AsyncConnection.connect(
            driver_url(url), connect_timeout=ATTEMPT_SECONDS, autocommit=True
        )
        async with connection:
            await connection.execute("SELECT 1")
        return True

    return attempt


def kafka_answers(bootstrap: str) -> Probe:
    """The broker lists its topics, which it does only after the controller has let it in."""

    def attempt() -> bool:
        settings: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0}
        client = AdminClient(settings, logger=_SILENT)
        return bool(client.list_topics(timeout=ATTEMPT_SECONDS).brokers)

    async def answers() -> bool:
        # Knock first: librdkafka would wait its own backoff after a refused connection.
        host, _, port = bootstrap.split(",")[0].rpartition(":")
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), ATTEMPT_SECONDS)
        writer.close()
        return await asyncio.to_thread(attempt)

    return answers


def driver_url(url: str) -> str:
    """The URL as libpq wants it: SQLAlchemy's driver suffix (`postgresql+psycopg://`) is dropped."""
    scheme, separator, rest = url.partition("://")
    return scheme.partition("+")[0] + separator + rest


async def attempt(probe: Probe) -> bool:
    """The probe's answer; a failure of whatever kind is a no."""
    try:
        return await probe()
    except Exception:
        return False
