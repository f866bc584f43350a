"""Probes: whether a part answers. Each makes one attempt of at most a few seconds."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient

from deploy.parts import Probe

ATTEMPT_SECONDS = 3

# librdkafka reports refused connections: that is what a probe is made for.
_SILENT = logging.Logger("deploy.readiness", level=logging.CRITICAL)


def http_answers(url: str) -> Probe:
    """GET answers 200."""

    def attempt() -> bool:
        # A proxy from the environment must never stand between us and loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=ATTEMPT_SECONDS) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError:
            return False

    return lambda: asyncio.to_thread(attempt)


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
