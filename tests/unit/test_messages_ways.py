"""How the Outbox Service finds the way to a destination, and when it must not say that there is none."""

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import pytest
from confluent_kafka import KafkaError, KafkaException

from outbox_relay.addresses import Address
from outbox_relay.directory import Directory
from outbox_relay.messages.delivery import Way, Ways
from outbox_relay.messages.destinations import HttpDestinations
from outbox_relay.messages.settings import MessageSettings
from outbox_relay.messages.topics import Topics
from outbox_relay.settings import DirectorySettings


def down() -> Iterable[str]:
    raise KafkaException(KafkaError(KafkaError._TRANSPORT))


class Remembered:
    """In place of ``HttpDestinations``: names that were reached over HTTP."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    async def remember(self, name: str) -> None:
        self.names.add(name)

    async def has(self, name: str) -> bool:
        return name in self.names


def way_to(destination: str, *listings: Callable[[], Iterable[str]], used: Remembered | None = None) -> object:
    """The way that is found last, when Kafka answers each question as told."""

    async def find() -> object:
        settings = MessageSettings(database_url="postgresql://nobody@127.0.0.1:9/none", kafka_bootstrap_servers="-")
        left = list(listings)
        topics = Topics(settings, lambda: left.pop(0)())
        found: object = None
        async with Directory(
            DirectorySettings.model_validate({"FLUXORA_SERVICE_MAP": '{"web": "http://127.0.0.1:9"}'})
        ) as directory:
            ways = Ways(directory, topics, cast(HttpDestinations, used or Remembered()))
            for _ in listings:
                found = await ways.find(destination)
        await topics.stop()
        return found

    return asyncio.run(find())


@pytest.mark.parametrize(
    ("listing", "way"),
    [(lambda: ["billing.messages"], Way.KAFKA), (lambda: ["billing.commands"], Way.KAFKA), (lambda: [], Way.NONE)],
)
def test_a_service_without_an_instance_is_reached_by_its_topic_if_it_has_one(
    listing: Callable[[], Iterable[str]], way: Way
) -> None:
    assert way_to("billing", listing) is way


def test_while_kafka_does_not_answer_nobody_says_that_there_is_no_way() -> None:
    assert way_to("billing", down) is Way.UNSURE
    assert way_to("billing", lambda: [], down) is Way.UNSURE


def test_a_topic_that_was_seen_is_the_way_also_while_kafka_does_not_answer() -> None:
    assert way_to("billing", lambda: ["billing.messages"], down) is Way.KAFKA


@pytest.mark.parametrize("listing", [lambda: ["billing.messages"], lambda: [], down])
def test_who_was_reached_over_http_is_away_without_an_instance_whatever_topics_there_are(
    listing: Callable[[], Iterable[str]],
) -> None:
    assert way_to("billing", listing, used=Remembered("billing")) is Way.AWAY
    assert way_to("meters", lambda: ["meters.commands"], used=Remembered("billing")) is Way.KAFKA


def test_an_instance_is_remembered_before_anything_is_sent_to_it() -> None:
    used = Remembered()
    assert isinstance(way_to("web", lambda: ["web.commands"], used=used), Address)
    assert used.names == {"web"}
