"""Sending dead letters back: what is refused before anything is sent."""

from typing import cast

import pytest
from confluent_kafka import Message

from fluxora.dead_letters import CannotRedrive, Letter, redrive


class Record:
    def __init__(self, topic: str) -> None:
        self._topic = topic

    def topic(self) -> str:
        return self._topic


def letter(topic: str, from_topic: str | None) -> tuple[Letter, Message]:
    return Letter(0, 7, 0, "k", 2, from_topic, 0, 1, "?", ""), cast(Message, Record(topic))


def test_messages_are_sent_again_by_the_outbox_service_not_into_a_topic() -> None:
    with pytest.raises(CannotRedrive, match="fluxora message redeliver"):
        redrive("127.0.0.1:9", [letter("fluxora.messages.dlq", "billing.messages")])


def test_a_letter_without_an_origin_cannot_be_sent_back() -> None:
    with pytest.raises(CannotRedrive, match="0:7 does not say where it came from"):
        redrive("127.0.0.1:9", [letter("billing.commands.dlq", None)])
