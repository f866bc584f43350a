"""The clock's claims on a real database: how often a deadline is produced that nobody folds, and what becomes of
deadlines when the clock of the database and that of the brokers, which is the log's, are not the same."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from participant.sagas import Retry, Step, started
from saga_processors.clock import Clock
from saga_processors.log import InputLog
from saga_processors.partition import Record
from saga_processors.processor import Processor
from saga_processors.settings import ProcessorSettings
from saga_processors.store import Store
from schemas import Codec
from tests.integration.test_processor import Sent, database, make, new_id
from tests.platform import Platform

HOUR = 3600.0

__all__ = ["database"]


class Delivered:
    """The report of a record that the brokers took."""

    def __init__(self, at_ms: int) -> None:
        self._at_ms = at_ms

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_LOG_APPEND_TIME, self._at_ms


class Brokers:
    """Stand where the producer would be. Their clock is seconds ``ahead`` of the database's, which is the host's."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        #: Of deadlines that are not of the epoch: at those nothing is due.
        self.keys: list[str] = []
        self.comparisons = 0
        #: Value, and when it was appended, ms.
        self.log: list[tuple[bytes, int]] = []
        self.gone = False
        self.ahead = 0.0
        #: Of the next comparisons, seconds that they wait before they are appended: a leader is elected.
        self.slow: list[float] = []
        self._reports: list[Callable[[], None]] = []

    def now_ms(self) -> int:
        return int((time.time() + self.ahead) * 1000)

    def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Callable[..., None]) -> None:
        if self.codec.decode(value)[1]["due_at"].timestamp() == 0:
            self.comparisons += 1
            time.sleep(self.slow.pop(0) if self.slow else 0)
        else:
            self.keys.append(key.decode())
        self.log.append((value, at := self.now_ms()))
        self._reports.append(lambda: on_delivery(None, Delivered(at)))

    def flush(self, timeout: float) -> int:
        reports, self._reports = self._reports, []
        if self.gone:
            return len(reports)
        for report in reports:
            report()
        return 0


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def brokers(platform: Platform) -> Brokers:
    return Brokers(platform.codec)


@pytest.fixture
def clock(platform: Platform, database: str, brokers: Brokers) -> Clock:
    clock = Clock(
        ProcessorSettings(
            database_url=database, kafka_bootstrap_servers="127.0.0.1:9", schema_registry_url="http://127.0.0.1:9"
        )
    )
    clock._codec = platform.codec
    clock._producer = brokers  # type: ignore[assignment]
    return clock


def due(connection: psycopg.Connection[Any], late: float) -> str:
    """A transaction whose deadline passed ``late`` seconds ago."""
    id = str(uuid.uuid4())
    connection.execute(
        "INSERT INTO transactions (id, kind, name, state, services, partition, version, definition, progress, "
        "next_deadline, created_at, updated_at) VALUES (%s, 'saga', 's', 'EXECUTING', '{}', 0, 1, '{}', '{}', "
        "clock_timestamp() - %s * interval '1 second', now(), now())",
        (id, late),
    )
    return id


def claimed_for(connection: psycopg.Connection[Any], id: str) -> float:
    row = connection.execute(
        "SELECT extract(epoch FROM deadline_claimed_until - clock_timestamp())::float FROM transactions WHERE id = %s",
        (id,),
    ).fetchone()
    assert row is not None
    return float(row[0])


def let_time_pass(connection: psycopg.Connection[Any], seconds: float) -> None:
    connection.execute(
        "UPDATE transactions SET next_deadline = next_deadline - %(s)s * interval '1 second', "
        "deadline_claimed_until = deadline_claimed_until - %(s)s * interval '1 second'",
        {"s": seconds},
    )


def test_a_deadline_that_nobody_folds_is_produced_ever_more_seldom(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 0)
    hours = 2
    for _ in range(hours * 3600 // 5):
        clock.look(connection)
        let_time_pass(connection, 5)
    # At 0, 15, 30, 60, 120, 240 and 480 s, and then every 300 s; every 15 s would be 480 times.
    assert 20 <= len(brokers.keys) <= 32
    assert set(brokers.keys) == {id}
    clock.look(connection)
    assert claimed_for(connection, id) <= 300


def test_a_clock_that_died_after_the_claim_delays_a_deadline_by_the_lease(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 4000)
    clock.look(connection)
    assert 13 < claimed_for(connection, id) <= 15, "however late it is: nobody had claimed it"
    assert clock.look(connection) == 0
    let_time_pass(connection, 16)
    assert clock.look(connection) == 1
    assert brokers.keys == [id, id]


def test_a_deadline_that_the_brokers_did_not_take_is_due_as_before(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    id = due(connection, 100)
    clock._skew.observe(time.time(), time.time(), time.time())
    clock._database_ahead = time.time() - time.monotonic()
    for _ in range(3):
        brokers.gone = True
        with pytest.raises(ConnectionError):
            clock.look(connection)
        brokers.gone = False
    assert clock.look(connection) == 1
    assert brokers.keys == [id] * 4
    assert claimed_for(connection, id) <= 15


# ── Clocks that differ ────────────────────────────────────────────────────────────────────────────────────────


class Skewed:
    """A processor and the clock in turn, on one database, with the log's time taken from ``brokers``."""

    def __init__(self, platform: Platform, brokers: Brokers, clock: Clock, connection: psycopg.Connection[Any]) -> None:
        self._platform, self._brokers, self._clock, self._connection = platform, brokers, clock, connection
        self.id = new_id()
        self.sent = Sent()
        self._offset = 0
        self._folded = 0
        self._answered = 0

    async def fold(self, processor: Processor, type: str, body: dict[str, Any], at_ms: int) -> None:
        value = self._platform.codec.encode(type, body)
        await processor.handle([Record(0, self._offset, at_ms, self.id.encode(), value)])
        self._offset += 1

    async def look(self, processor: Processor) -> None:
        """One look of the clock, and what it produced is folded."""
        self._clock.look(self._connection)
        for value, at_ms in self._brokers.log[self._folded :]:
            name, body = self._platform.codec.decode(value)
            if body["transaction_id"] == self.id:
                await self.fold(processor, name, body, at_ms)
        self._folded = len(self._brokers.log)

    async def refuse_to_work(self, processor: Processor) -> None:
        """The service answers each new attempt at once, with an error."""
        for attempt in range(self._answered + 1, self.attempts + 1):
            reply = {"command_id": "c", "step": "step-1", "operation": "ACTION", "attempt": attempt}
            body = {"transaction_id": self.id, "outcome": "FAILED", **reply}
            await self.fold(processor, "fluxora.StepReplied", body, self._brokers.now_ms())
            self._answered = attempt

    @property
    def attempts(self) -> int:
        return sum(record.topic == "alpha.commands" for record in self.sent.records)

    def play(self, step: Step, seconds: float, *, answers: bool) -> None:
        """Begin a saga of one step, and let ``seconds`` pass."""

        async def scenario() -> None:
            url = self._clock._settings.database_url
            store = await Store.connect(url, "skewed", idle_limit=10)
            input_log = InputLog(self._platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"])
            try:
                processor = make(self._platform, store, input_log, self.sent)
                first = started(uuid.UUID(self.id), "skewed", [step])
                await self.fold(processor, "fluxora.SagaStarted", first, self._brokers.now_ms())
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    await self.look(processor)
                    if answers:
                        await self.refuse_to_work(processor)
                    await asyncio.sleep(0.01)
            finally:
                input_log.close()
                await store.close()

        asyncio.run(scenario())


@pytest.fixture
def skewed(
    platform: Platform, brokers: Brokers, clock: Clock, connection: psycopg.Connection[Any]
) -> Callable[[float], Skewed]:
    def make_skewed(ahead: float) -> Skewed:
        brokers.ahead = ahead
        return Skewed(platform, brokers, clock, connection)

    return make_skewed


def every_half_second(attempts: int) -> Step:
    return Step("alpha", {}, retry=Retry(attempts, 0.5, 0.5, jitter=0.0), timeout_seconds=20)


def test_a_database_an_hour_ahead_hurries_no_retry(skewed: Callable[[float], Skewed], brokers: Brokers) -> None:
    one = skewed(-HOUR)
    one.play(every_half_second(100), 3, answers=True)
    # In three seconds there is time for 6 retries, half a second apart.
    assert 3 <= one.attempts <= 7
    assert brokers.comparisons == 1
    assert len(brokers.keys) == one.attempts - 1, "each deadline was produced once"


def test_a_database_an_hour_ahead_ends_no_step_before_its_time(
    skewed: Callable[[float], Skewed], connection: psycopg.Connection[Any], brokers: Brokers
) -> None:
    one = skewed(-HOUR)
    one.play(Step("alpha", {}, retry=Retry(1), timeout_seconds=60), 1, answers=False)
    assert (one.attempts, brokers.keys, brokers.comparisons) == (1, [], 1)
    [(state,)] = connection.execute("SELECT state FROM transactions WHERE id = %s", (one.id,)).fetchall()
    assert state == "EXECUTING"


@pytest.mark.parametrize("ahead", [HOUR, 0.0])
def test_a_database_an_hour_behind_is_seen_as_soon_as_anything_was_produced(
    ahead: float, skewed: Callable[[float], Skewed], connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    one = skewed(ahead)
    due(connection, 1)
    clock.look(connection)
    one.play(every_half_second(100), 3, answers=True)
    assert 3 <= one.attempts <= 7, "as with clocks that agree"


def test_a_database_an_hour_behind_is_late_by_it_and_decides_nothing_wrong_before_that(
    skewed: Callable[[float], Skewed], connection: psycopg.Connection[Any], brokers: Brokers
) -> None:
    one = skewed(HOUR)
    one.play(Step("alpha", {}, retry=Retry(1), timeout_seconds=0.1), 1, answers=False)
    assert brokers.keys == [], "nothing has told yet how late it is"
    [(state,)] = connection.execute("SELECT state FROM transactions WHERE id = %s", (one.id,)).fetchall()
    assert state == "EXECUTING"


def test_a_clock_that_was_mended_holds_nothing_back_for_longer_than_a_minute(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers.ahead = -HOUR
    first = due(connection, 2 * HOUR)
    clock.look(connection)
    second = due(connection, 1)
    assert clock.look(connection) == 0, "by the brokers' clock it is not due for an hour"
    brokers.ahead = 0.0
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert clock.look(connection) == 1
    assert brokers.keys == [first, second]


def test_a_slow_first_round_trip_is_not_taken_for_clocks_that_agree(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    brokers.ahead = -1.5
    brokers.slow = [1.6]
    first = due(connection, 0.2)
    # Past when the clocks have been compared, by the database; not for another second, by the brokers.
    due(connection, -1.0)
    assert clock.look(connection) == 1
    assert (brokers.keys, brokers.comparisons) == ([first], 2)


def test_brokers_that_are_always_slow_delay_deadlines_and_withhold_none(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    brokers.slow = [0.6] * 20
    id = due(connection, 1)
    assert clock.look(connection) == 1
    assert (brokers.keys, brokers.comparisons) == ([id], 5)


def test_the_comparison_delays_no_deadline_and_fires_none(
    connection: psycopg.Connection[Any], clock: Clock, brokers: Brokers
) -> None:
    assert clock.look(connection) == 0 and brokers.log == [], "nothing is due, so nothing is asked"
    for _ in range(20):
        due(connection, 1)
    assert clock.look(connection) == 20
    assert (len(brokers.keys), brokers.comparisons) == (20, 1)
    assert brokers.codec.decode(brokers.log[0][0])[1]["due_at"].timestamp() == 0, "it comes first"
