"""What a relay calls after another one had its partitions: over librdkafka's own mock of a broker, in this process."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from outbox_relay import intake as intakes
from outbox_relay import predecessors
from outbox_relay.clock import BrokerClock
from outbox_relay.command import COMMAND, SOURCE
from outbox_relay.intake import TOPIC, Intake, Taken
from outbox_relay.predecessors import Answered, read_answered
from outbox_relay.settings import RelaySettings
from participant.command import TRANSACTIONS_TOPIC

NOTHING = Answered(0.0, frozenset())


class JsonCodec:
    """Stands for the codec: the tests are about which commands come, not about their bytes."""

    def encode(self, name: str, record: dict[str, Any]) -> bytes:
        return json.dumps(record, default=str).encode()

    def decode(self, value: bytes) -> tuple[str, dict[str, Any]]:
        record = json.loads(value)
        return COMMAND, {**record, "expires_at": datetime.fromisoformat(record["expires_at"])}


class Relays:
    """Relays of one group, one after the other."""

    def __init__(self) -> None:
        self._mock = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
        broker = next(iter(self._mock.list_topics(timeout=10).brokers.values()))
        self.address = f"{broker.host}:{broker.port}"
        self.producer = Producer({"bootstrap.servers": self.address})

    def send(self, *command_ids: str) -> None:
        for command_id in command_ids:
            record = {
                "command_id": command_id,
                "transaction_id": str(uuid4()),
                "subject": "pay",
                "operation": "ACTION",
                "attempt": 1,
                "idempotency_key": command_id,
                "service_name": "payments",
                "service_url": None,
                "endpoint": "/pay",
                "body": "{}",
                "timeout_ms": 60_000,
                "expires_at": datetime.now(UTC) + timedelta(seconds=60),
            }
            self.producer.produce(TOPIC, JsonCodec().encode(COMMAND, record), b"one key", partition=0)
        assert self.producer.flush(10) == 0

    def start(self) -> "Running":
        return Running(self.address)


class Running:
    def __init__(self, address: str) -> None:
        self.taken: list[Taken] = []
        settings = RelaySettings(kafka_bootstrap_servers=address, schema_registry_url="http://none")
        codec: Any = JsonCodec()
        self._intake = Intake(settings, codec, BrokerClock(), self._deliver)
        self._thread = threading.Thread(target=self._intake.run)
        self._thread.start()
        self._until(lambda: self._intake.trouble is None)

    def takes(self, *command_ids: str) -> list[Taken]:
        """These and no others, since the last time."""
        self._until(lambda: len(self.taken) >= len(command_ids))
        assert [taken.command.command_id for taken in self.taken] == list(command_ids)
        found, self.taken = self.taken, []
        return found

    def leave(self) -> None:
        self._stop()
        self._intake.leave()

    def crash(self) -> None:
        """Leave nothing behind but what was committed already."""
        self._stop()
        self._intake._consumer.close()

    def _stop(self) -> None:
        self._intake.stop()
        self._thread.join()

    def _deliver(self, batch: Sequence[Taken], handed: threading.Event) -> None:
        self.taken += batch
        handed.set()

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> Relays:
    monkeypatch.setattr(intakes, "read_answered", lambda *_: NOTHING)
    relays = Relays()
    relays.send("zero")
    return relays


def test_who_comes_after_a_relay_that_left_nothing_open_doubts_nothing_and_after_a_crash_everything(
    relays: Relays,
) -> None:
    first = relays.start()
    (zero,) = first.takes("zero")
    assert not zero.again, "nobody was here before"
    relays.send("one", "one")
    (one,) = first.takes("one")
    zero.done()
    one.done()
    relays.send("one", "two")
    (two,) = first.takes("two")
    two.done()
    first.leave()

    relays.send("three")
    second = relays.start()
    (three,) = second.takes("three")
    assert not three.again
    second.crash()

    relays.send("four")
    third = relays.start()
    three, four = third.takes("three", "four")
    assert three.again and four.again, "the second one may have called both"
    relays.send("five")
    (five,) = third.takes("five")
    assert not five.again
    five.done()
    three.done()
    third.leave()

    fourth = relays.start()
    four, five = fourth.takes("four", "five")
    assert four.again, "it was under way"
    fourth.crash()


def test_what_the_log_says_is_answered_is_passed_over(relays: Relays, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def read(address: str, since: float, limit: int, seconds: float) -> Answered:
        asked.append(since)
        return Answered(since, frozenset({"zero", "gone"}))

    monkeypatch.setattr(intakes, "read_answered", read)
    before = time.time()
    first = relays.start()
    relays.send("gone", "one")
    (one,) = first.takes("one")
    assert [since < before for since in asked] == [True], "read once, from before the oldest"
    one.done()
    first.leave()

    monkeypatch.setattr(intakes, "read_answered", lambda *_: Answered(0.0, frozenset({"gone"}), "too long"))
    relays.send("gone", "two")
    second = relays.start()
    (two,) = second.takes("two")
    assert two.again
    assert two.withheld == "a relay before this one may have called: too long"
    second.crash()


def test_the_log_is_read_from_a_time_to_its_end_and_tells_what_relays_have_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def headers(source: str, id: str) -> list[tuple[str, str | bytes | None]]:
        return [("ce_source", source.encode()), ("ce_id", id.encode())]

    relays = Relays()
    for partition, record in (
        (0, headers(SOURCE, "before:reply")),
        (0, headers(SOURCE, "one:reply")),
        (0, headers("/ledger", "other:reply")),
        (1, headers(SOURCE, "two:é:reply")),
        (1, []),
    ):
        relays.producer.produce(TRANSACTIONS_TOPIC, b"", b"", partition=partition, headers=record)
    assert relays.producer.flush(10) == 0

    class FromTheSecondOn(Consumer):
        """The mock has no index of times."""

        def offsets_for_times(self, partitions: list[TopicPartition], **_: Any) -> list[TopicPartition]:
            starts = {0: 1, 1: 0}
            return [TopicPartition(p.topic, p.partition, starts.get(p.partition, -1)) for p in partitions]

    monkeypatch.setattr(predecessors, "Consumer", FromTheSecondOn)
    assert read_answered(relays.address, 5.0, 4, 30) == Answered(5.0, frozenset({"one", "two:é"}))
    assert read_answered(relays.address, 5.0, 3, 30).gap == "the log has 4 records since then, and 3 may be read"
