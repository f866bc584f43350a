"""Processes that die at the worst line. After each: nothing lost, nothing twice, nothing stuck."""

import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from confluent_kafka import Producer
from sqlalchemy import create_engine

from participant.sagas import Retry, Step, start
from tests.platform import Platform, steps

FREEZES = int(os.environ.get("FLUXORA_TEST_FREEZES", "2"))


def start_sagas(platform: Platform, count: int, name: str = "ledger") -> dict[str, int | None]:
    """Start ``count`` sagas of three steps; every fifth is refused at the last one. For each: which step refuses."""
    expected: dict[str, int | None] = {}
    for i in range(count):
        refuses = i % 5 == 4
        expected[platform.start(steps({}, {}, {"refuse": refuses}), name=name)] = 2 if refuses else None
    return expected


def came_through(platform: Platform, name: str) -> int:
    """How many of these sagas have been folded."""
    [(count,)] = platform.query("fluxora", "SELECT count(*) FROM transactions WHERE name = %s AND version > 0", name)
    return int(count)


@pytest.mark.parametrize(
    ("point", "meaning"),
    [
        ("processor.before_commit", "decided, nothing durable: the inputs come again"),
        ("processor.after_commit", "durable, not published: the next owner publishes from the journal"),
        ("processor.after_publish", "published, not acknowledged: the inputs come again and are skipped"),
        ("participant.before_commit", "handled, nothing durable: the commands come again"),
        ("participant.after_commit", "replied, offsets not committed: the commands come again and are skipped"),
    ],
)
def test_a_crash_at_this_line_loses_and_doubles_nothing(platform: Platform, point: str, meaning: str) -> None:
    platform.crash_once_at(point)
    expected = start_sagas(platform, 20)
    platform.crashed(point)
    platform.check_whole_or_undone(expected, platform.wait_all(expected))


def test_effects_not_published_before_the_crash_are_published_by_the_next_processor(platform: Platform) -> None:
    """The one gap between two systems: the database has decided, Kafka has not heard."""
    platform.crash_once_at("processor.after_commit")
    saga = platform.start(steps({}))
    platform.crashed("processor.after_commit")
    assert platform.wait(saga)["state"] == "COMPLETED"
    assert platform.entries([saga])[saga] == {("s0", "ACTION"): 1}


@pytest.mark.timeout(1200)
def test_connect_killed_in_mid_batch_loses_and_doubles_nothing(platform: Platform) -> None:
    """Killed twice while some inputs have come through and others have not, streaming again in between."""
    expected: dict[str, int | None] = {}
    for _ in range(2):
        name = f"batch-{uuid.uuid4()}"
        killed = threading.Event()

        def post(name: str = name, killed: threading.Event = killed) -> dict[str, int | None]:
            posted: dict[str, int | None] = {}
            while not killed.is_set():
                posted |= start_sagas(platform, 5, name)
            return posted | start_sagas(platform, 20, name)

        with ThreadPoolExecutor(1) as clients:
            posting = clients.submit(post)
            try:
                platform.until(partial(came_through, platform, name), "no input came through")
                pid = platform.kill("connect")
            finally:
                killed.set()
            expected |= posting.result()
        platform.restarted("connect", pid)
        marker = platform.start(steps({}))
        platform.wait_all([marker], 240)
    platform.check_whole_or_undone(expected, platform.wait_all(expected, 180))


@pytest.mark.timeout(900)
def test_many_kills_of_the_processors_lose_double_and_stick_nothing(platform: Platform) -> None:
    """FLUXORA_TEST_KILLS and FLUXORA_TEST_SAGAS say how many; `make test` keeps it short."""
    kills = int(os.environ.get("FLUXORA_TEST_KILLS", "4"))
    sagas = int(os.environ.get("FLUXORA_TEST_SAGAS", "100"))
    expected: dict[str, int | None] = {}
    for _ in range(kills):
        expected |= start_sagas(platform, sagas // kills)
        pid = platform.kill("saga-processor-1")
        platform.restarted("saga-processor-1", pid)
        # Killed again only when it folds: with its partitions, in the middle of its work.
        marker = [platform.start(steps({})) for _ in range(6)]
        platform.wait_all(marker)
    platform.check_whole_or_undone(expected, platform.wait_all(expected, 240))


def test_participants_and_the_database_killed_lose_and_double_nothing(platform: Platform) -> None:
    expected = start_sagas(platform, 20)
    for name in ("alpha", "postgres", "gamma"):
        pid = platform.kill(name)
        platform.restarted(name, pid)
    platform.until(lambda: platform.http.get("/ready").status_code == 200, "the coordinator is not ready")
    expected |= start_sagas(platform, 20)
    platform.check_whole_or_undone(expected, platform.wait_all(expected, 240))


def test_a_processor_that_was_frozen_and_comes_back_decides_nothing_differently(platform: Platform) -> None:
    """A zombie: stopped past its session timeout, while another one takes its partitions over."""
    frozen = platform.kill("saga-processor-1", signal.SIGSTOP)
    try:
        expected = start_sagas(platform, 30)
        states = platform.wait_all(expected, 120)
    finally:
        os.kill(frozen, signal.SIGCONT)
    platform.check_whole_or_undone(expected, states)
    expected = start_sagas(platform, 30)
    platform.check_whole_or_undone(expected, platform.wait_all(expected))


def test_a_whole_log_that_comes_again_changes_nothing(platform: Platform) -> None:
    """Fault 20: every input so far is produced once more, as a connector without its offsets would."""
    expected = start_sagas(platform, 10)
    states = platform.wait_all(expected)
    again = Producer(
        {"bootstrap.servers": platform.endpoints["KAFKA_BOOTSTRAP_SERVERS"], "partitioner": "murmur2_random"}
    )
    for id in expected:
        for message in platform.records_of("fluxora.transactions", id):
            again.produce("fluxora.transactions", message.value(), message.key())
    assert again.flush(30) == 0
    marker = platform.start(steps({}))
    platform.wait(marker)
    time.sleep(2)
    assert platform.wait_all(expected) == states
    platform.check_whole_or_undone(expected, states)


def test_a_saga_for_a_service_that_is_not_there_holds_up_nobody_else(platform: Platform) -> None:
    """A service can start a saga through its outbox without REST's checks: it may mistype a name."""
    os.environ["SCHEMA_REGISTRY_URL"] = platform.endpoints["SCHEMA_REGISTRY_URL"]
    nobody = f"nobody-{time.time_ns()}"
    engine = create_engine(platform.endpoints["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        lost = start(connection, "lost", [Step(nobody, timeout_seconds=1, retry=Retry(max_attempts=1))])
        bad = start(connection, "bad", [])
    engine.dispose()
    expected = start_sagas(platform, 5)
    platform.check_whole_or_undone(expected, platform.wait_all(expected))
    platform.until(
        lambda: platform.http.get(f"/sagas/{lost}").json()["state"] == "COMPENSATING",
        "the saga for nobody did not turn round",
    )
    # What breaks a rule is dead-lettered, and the journal says why under its id.
    in_journal = "SELECT outcome, reason FROM journal WHERE transaction_id = %s"
    platform.until(lambda: platform.query("fluxora", in_journal, bad), "nothing is in the journal")
    [(outcome, reason)] = platform.query("fluxora", in_journal, bad)
    assert outcome == "POISON"
    assert "at least one step" in reason


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broker_that_was_away_leaves_no_service_deaf(platform: Platform, how: signal.Signals) -> None:
    """Away for longer than the session timeout: members are fenced when they come back, idle ones too."""
    platform.wait(platform.start(steps({}, {}, {})))
    if how is signal.SIGKILL:
        for _ in range(2):
            platform.restarted("kafka", platform.kill("kafka"))
            time.sleep(4)
    else:
        # Time after time: what a member meets when the broker comes back is a matter of milliseconds.
        for freeze in range(FREEZES):
            frozen = platform.kill("kafka", signal.SIGSTOP)
            time.sleep(11 + freeze)
            os.kill(frozen, signal.SIGCONT)
            expected = start_sagas(platform, 10)
            platform.check_whole_or_undone(expected, platform.wait_all(expected, 120))
    expected = start_sagas(platform, 10)
    platform.check_whole_or_undone(expected, platform.wait_all(expected, 120))
