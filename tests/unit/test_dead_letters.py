"""Sending dead letters back: what is refused before anything is sent."""

from typing import cast

import pytest
from confluent_kafka import Message

from fluxora import sending
from fluxora.dead_letters import CannotRedrive, Letter, check, redrive


class Record:
    def __init__(self, topic: str) -> None:
        self._topic = topic

    def topic(self) -> str:
        return self._topic

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> list[tuple[str, bytes]]:
        return []


class FullProducer:
    """librdkafka's queue takes one record until it is polled with a wait."""

    def __init__(self, settings: object) -> None:
        self.waiting = 0
        self.sent = 0

    def produce(self, *record: object, **more: object) -> None:
        if self.waiting:
            raise BufferError("Local: Queue full")
        self.waiting = 1

    def poll(self, seconds: float) -> None:
        if seconds:
            self.sent, self.waiting = self.sent + self.waiting, 0

    def flush(self, seconds: float) -> int:
        self.poll(seconds)
        return 0


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FullProducer] = []

    def make(settings: object) -> FullProducer:
        made.append(FullProducer(settings))
        return made[-1]

    monkeypatch.setattr(sending, "Producer", make)
    redrive("127.0.0.1:9", [letter("billing.commands.dlq", "billing.commands")] * 3)
    assert made[0].sent == 3


def letter(topic: str, from_topic: str | None) -> tuple[Letter, Message]:
    return Letter(0, 7, 0, "k", 2, from_topic, 0, 1, "?", ""), cast(Message, Record(topic))


def test_messages_are_sent_again_by_the_outbox_service_not_into_a_topic() -> None:
    with pytest.raises(CannotRedrive, match="fluxora message redeliver"):
        check([letter("fluxora.messages.dlq", "billing.messages")])


def test_a_letter_without_an_origin_cannot_be_sent_back() -> None:
    with pytest.raises(CannotRedrive, match="0:7 does not say where it came from"):
        check([letter("billing.commands.dlq", None)])
