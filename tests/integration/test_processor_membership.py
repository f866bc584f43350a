"""A processor whose client gave up its place in the group knows it: aiokafka tells only those who ask for records."""

import asyncio
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupAuthorizationFailedError

from saga_processors.delivery import _BatchConsumer
from saga_processors.log import INPUT_TOPIC
from tests.platform import Platform


def run(platform: Platform, test: Callable[[Any, Callable[[], BaseException | None]], Any]) -> None:
    """``test`` gets a member of a group of its own, and the processor's look at it."""

    async def scene() -> None:
        member = AIOKafkaConsumer(
            INPUT_TOPIC,
            bootstrap_servers=platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"],
            group_id=f"membership-{uuid.uuid4().hex[:8]}",
        )
        of_faust = cast(_BatchConsumer, SimpleNamespace(_thread=SimpleNamespace(_consumer=member)))
        await member.start()
        try:
            await test(member, lambda: _BatchConsumer.failure(of_faust))
        finally:
            await member.stop()
        assert _BatchConsumer.failure(of_faust) is None, "an end is no failure"

    asyncio.run(scene())


async def told(failure: Callable[[], BaseException | None]) -> BaseException:
    async with asyncio.timeout(20):
        while (found := failure()) is None:  # noqa: ASYNC110  # aiokafka has no event for it: that is the trouble
            await asyncio.sleep(0.02)
    return found


def test_a_member_that_found_no_broker_to_ask_is_none_any_more(platform: Platform) -> None:
    async def test(member: Any, failure: Callable[[], BaseException | None]) -> None:
        await asyncio.sleep(0.5)
        assert failure() is None
        # What a broker brings about that has just come back: its metadata names no broker.
        member._client.get_random_node = lambda: None
        member._coordinator.coordinator_dead()
        assert "bootstrap" in repr(await told(failure))

    run(platform, test)


def test_a_member_that_waits_to_be_asked_for_its_trouble_is_none_any_more(platform: Platform) -> None:
    async def test(member: Any, failure: Callable[[], BaseException | None]) -> None:
        async def refused() -> None:
            raise GroupAuthorizationFailedError("membership")

        member._coordinator.ensure_coordinator_known = refused
        member._coordinator.coordinator_dead()
        assert isinstance(await told(failure), GroupAuthorizationFailedError)

    run(platform, test)
