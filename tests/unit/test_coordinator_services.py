"""Which service names are known, while Kafka is up and while it is down."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from coordinator.metrics import Metrics
from coordinator.services import KafkaUnavailable, Services
from coordinator.settings import Settings


class Kafka:
    """Topics that can be added, and an outage."""

    def __init__(self, *topics: str) -> None:
        self.topics = set(topics)
        self.down = False
        self.listings = 0

    def __call__(self) -> Iterable[str]:
        self.listings += 1
        if self.down:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return set(self.topics)


def run(kafka: Kafka, scenario: Callable[[Services], Awaitable[None]], **changes: Any) -> None:
    settings = Settings(
        database_url="x",
        kafka_bootstrap_servers="x",
        schema_registry_url="x",
        **({"services_interval_seconds": 0.02, "services_ttl_seconds": 60} | changes),
    )

    async def whole() -> None:
        services = Services(settings, Metrics(), kafka)
        try:
            await scenario(services)
        finally:
            await services.stop()

    asyncio.run(whole())


def test_a_service_is_known_by_its_command_topic() -> None:
    async def scenario(services: Services) -> None:
        assert await services.unknown(["billing", "orders"]) == {"orders"}

    run(Kafka("billing.commands", "billing.commands.dlq", "orders", ".commands"), scenario)


def test_a_service_added_a_moment_ago_is_found() -> None:
    kafka = Kafka()

    async def scenario(services: Services) -> None:
        assert await services.unknown(["billing"]) == {"billing"}
        kafka.topics.add("billing.commands")
        assert await services.unknown(["billing"]) == set()

    run(kafka, scenario)


def test_a_known_name_survives_an_outage_and_an_unknown_one_is_in_doubt() -> None:
    kafka = Kafka("billing.commands")

    async def scenario(services: Services) -> None:
        assert await services.unknown(["billing"]) == set()
        kafka.down = True
        with pytest.raises(KafkaUnavailable):
            await services.unknown(["billing", "orders"])
        assert await services.unknown(["billing"]) == set()
        assert services.error is not None
        kafka.down = False
        assert await services.unknown(["orders"]) == {"orders"}
        assert services.error is None

    run(kafka, scenario)


def test_a_known_name_asks_nobody() -> None:
    kafka = Kafka("billing.commands")

    async def scenario(services: Services) -> None:
        for _ in range(100):
            await services.unknown(["billing"])
        assert kafka.listings == 1

    run(kafka, scenario)


def test_many_unknown_names_at_once_share_listings() -> None:
    kafka = Kafka()

    async def scenario(services: Services) -> None:
        began = time.monotonic()
        for _ in range(3):
            await asyncio.gather(*(services.unknown([f"nobody-{i}"]) for i in range(200)))
        assert kafka.listings <= 1 + (time.monotonic() - began) / 0.02

    run(kafka, scenario)


def test_a_removed_service_is_forgotten_in_the_background() -> None:
    kafka = Kafka("billing.commands")

    async def scenario(services: Services) -> None:
        services.start()
        assert await services.unknown(["billing"]) == set()
        kafka.topics.clear()
        for _ in range(100):
            if not services.known:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("still known")

    run(kafka, scenario, services_ttl_seconds=1)
