"""Waiting for the end of sagas, and what happens while PostgreSQL, Kafka or the registry is away.

The processor's part, ending sagas with NOTIFY, is simulated with SQL.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from tests.integration.fix_coordinator import (
    Coordinator,
    Wire,
    coordinator,
    coordinator_database,
    eventually,
    new_database,
    running,
    saga,
)
from tests.integration.test_coordinator_sagas import problem

__all__ = ["coordinator", "coordinator_database"]  # fixtures


@pytest.fixture(scope="module")
def wire(coordinator_database: str) -> Iterator[Wire]:
    url = make_url(coordinator_database)
    made = Wire(url.host or "127.0.0.1", url.port or 5432)
    yield made
    made.close()


@pytest.fixture(scope="module")
def behind_the_wire(coordinator_database: str, wire: Wire) -> Iterator[Coordinator]:
    """One process for all tests: starting it is most of their time."""
    through = make_url(coordinator_database).set(host="127.0.0.1", port=wire.port)
    with running(
        coordinator_database,
        reached_by=through.render_as_string(hide_password=False),
        listen_check_seconds=1,
        statement_timeout_seconds=1,
        pool_wait_seconds=1,
    ) as process:
        yield process
        wire.restore()


@pytest.fixture
def cuttable(behind_the_wire: Coordinator, wire: Wire) -> Coordinator:
    wire.restore()
    eventually(lambda: behind_the_wire.client.get("/ready").status_code == 200)
    return behind_the_wire


@pytest.fixture(scope="module")
def get() -> Iterator[Callable[[str], httpx.Response]]:
    """Ask from many threads at once. One client: to make one takes longer than its call."""
    with httpx.Client(timeout=90, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
        yield client.get


# ── Waiting ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_waiter_is_answered_when_its_saga_ends(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    threading.Timer(0.7, coordinator.end, [saga_id]).start()
    began = time.monotonic()
    answer = coordinator.client.get(f"/sagas/{saga_id}?wait=20s")
    assert answer.json()["state"] == "COMPLETED"
    assert 0.6 < time.monotonic() - began < 18
    assert coordinator.client.get(f"/sagas/{saga_id}?wait=20s").json()["state"] == "COMPLETED"  # at once


def test_a_waiter_whose_time_is_over_gets_the_state_as_it_is(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    began = time.monotonic()
    answer = coordinator.client.get(f"/sagas/{saga_id}?wait=500ms")
    assert answer.status_code == 200 and answer.json()["state"] == "STARTED"
    assert 0.4 < time.monotonic() - began < 20


def test_many_waiters_are_woken_without_asking_the_database_meanwhile(
    coordinator: Coordinator, get: Callable[[str], httpx.Response]
) -> None:
    saga_ids = [coordinator.post().json()["saga_id"] for _ in range(300)]

    def reads() -> int:
        ((count,),) = coordinator.sql(
            # The index by which a waiter's saga is read; admission, which looks every second, uses another one.
            "SELECT idx_scan::int FROM pg_stat_user_indexes WHERE indexrelname = 'transactions_pkey'"
        )
        return int(count)

    with ThreadPoolExecutor(300) as pool:
        answers = [pool.submit(get, f"{coordinator.url}/sagas/{saga_id}?wait=60s") for saga_id in saga_ids]
        eventually(lambda: "fluxora_coordinator_waiters 300.0" in coordinator.client.get("/metrics").text, 60)
        # PostgreSQL's idle sessions report what they have counted within ten seconds (PGSTAT_IDLE_INTERVAL).
        time.sleep(11)
        before = reads()
        time.sleep(4)
        assert reads() == before
        coordinator.end(*saga_ids)
        assert {answer.result(50).json()["state"] for answer in answers} == {"COMPLETED"}
    eventually(lambda: "fluxora_coordinator_waiters 0.0" in coordinator.client.get("/metrics").text)


def test_a_waiter_that_leaves_gives_its_place_back(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{coordinator.url}/sagas/{saga_id}?wait=60s", timeout=httpx.Timeout(30, read=0.5), trust_env=False)
    eventually(lambda: "fluxora_coordinator_waiters 0.0" in coordinator.client.get("/metrics").text)


def test_waiters_survive_the_loss_of_the_listening_connection(
    cuttable: Coordinator, wire: Wire, get: Callable[[str], httpx.Response]
) -> None:
    saga_ids = [cuttable.post().json()["saga_id"] for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(get, f"{cuttable.url}/sagas/{saga_id}?wait=60s") for saga_id in saga_ids]
        eventually(lambda: "fluxora_coordinator_waiters 20.0" in cuttable.client.get("/metrics").text)
        wire.cut()
        cuttable.end(*saga_ids)  # nobody hears it
        time.sleep(1)
        wire.restore()
        assert {answer.result(50).json()["state"] for answer in answers} == {"COMPLETED"}


def test_one_waiter_too_many_is_told_to_come_back(
    coordinator_database: str, get: Callable[[str], httpx.Response]
) -> None:
    with running(coordinator_database, max_waiters=1) as process:
        saga_id = process.post().json()["saga_id"]
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(get, f"{process.url}/sagas/{saga_id}?wait=30s")
            eventually(lambda: "fluxora_coordinator_waiters 1.0" in process.client.get("/metrics").text)
            refused = process.client.get(f"/sagas/{saga_id}?wait=30s")
            assert problem(refused, 503) and refused.headers["retry-after"]
            assert process.client.get(f"/sagas/{saga_id}").status_code == 200
            process.end(saga_id)
            assert first.result(50).json()["state"] == "COMPLETED"


def test_sigterm_answers_waiters_with_the_state_as_it_is(
    coordinator_database: str, get: Callable[[str], httpx.Response]
) -> None:
    with running(coordinator_database) as process:
        saga_id = process.post().json()["saga_id"]
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(get, f"{process.url}/sagas/{saga_id}?wait=60s")
            eventually(lambda: "fluxora_coordinator_waiters 1.0" in process.client.get("/metrics").text)
            process.process.send_signal(signal.SIGTERM)
            answer = waiting.result(50)
        assert answer.status_code == 200 and answer.json()["state"] == "STARTED"
        process.client.close()
        assert process.process.wait(60) in (0, -signal.SIGTERM)


# ── Outages ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_postgresql_it_says_so_and_comes_back_by_itself(cuttable: Coordinator, wire: Wire) -> None:
    known = cuttable.post().json()["saga_id"]
    before = cuttable.counts()
    wire.cut()
    for _ in range(3):
        answer = cuttable.post()
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        problem(cuttable.client.get(f"/sagas/{known}"), 503)
        problem(cuttable.client.get("/sagas"), 503)
    assert cuttable.client.get("/health").status_code == 200
    assert problem(cuttable.client.get("/ready"), 503)["reasons"]
    assert cuttable.counts() == before
    wire.restore()
    eventually(lambda: cuttable.client.get("/ready").status_code == 200)
    assert cuttable.post().status_code == 201


def test_connections_that_died_in_the_pool_cost_no_request(cuttable: Coordinator) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert {a.status_code for a in pool.map(lambda _: cuttable.post(), range(64))} == {201}
    cuttable.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'fluxora-coordinator' AND datname = current_database()"
    )
    assert cuttable.post().status_code == 201
    assert cuttable.client.get("/sagas").status_code == 200


def test_a_database_that_hangs_is_a_503_in_time(cuttable: Coordinator, wire: Wire) -> None:
    wire.freeze()
    began = time.monotonic()
    answers = [cuttable.post(), cuttable.client.get("/sagas")]
    assert time.monotonic() - began < 25
    for answer in answers:
        problem(answer, 503)
    wire.restore()
    eventually(lambda: cuttable.post().status_code == 201)


def test_no_saga_is_half_there_or_twice_when_connections_break_all_the_time(cuttable: Coordinator, wire: Wire) -> None:
    before = cuttable.counts()
    stop = threading.Event()

    def break_often() -> None:
        while not stop.wait(0.15):
            with psycopg.connect(cuttable.database_url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'fluxora-coordinator' AND datname = current_database()"
                )

    breaking = threading.Thread(target=break_often)
    breaking.start()
    try:
        with ThreadPoolExecutor(12) as pool:
            answers = list(
                pool.map(lambda i: cuttable.post(saga(name="torn"), Idempotency_Key=f"torn-{i}"), range(400))
            )
    finally:
        stop.set()
        breaking.join()
    assert {answer.status_code for answer in answers} <= {201, 503}
    made = {answer.json()["saga_id"] for answer in answers if answer.status_code == 201}
    eventually(lambda: cuttable.client.get("/ready").status_code == 200)
    for i, answer in enumerate(answers):  # what was in doubt is settled by sending it again
        if answer.status_code == 503:
            made.add(cuttable.post(saga(name="torn"), Idempotency_Key=f"torn-{i}").json()["saga_id"])
    assert len(made) == 400
    after = cuttable.counts()
    assert (after[0] - before[0], after[1] - before[1]) == (400, 400)


def test_before_the_tables_are_there_it_is_not_ready(coordinator_database: str) -> None:
    empty = make_url(coordinator_database).set(database="postgres").render_as_string(hide_password=False)
    with running(empty) as process:
        assert "fluxora init" in problem(process.client.get("/ready"), 503)["detail"]
        problem(process.post(), 503)


def test_an_unknown_service_while_kafka_is_down_is_a_503(coordinator_database: str) -> None:
    with running(coordinator_database, kafka_bootstrap_servers="127.0.0.1:9", kafka_timeout_seconds=1) as process:
        answer = process.post()
        assert problem(answer, 503) and answer.headers["retry-after"]
        problem(process.client.get("/ready"), 503)


def test_the_registry_is_needed_for_the_first_saga_only(coordinator_database: str) -> None:
    with running(coordinator_database, schema_registry_url="http://127.0.0.1:9") as process:
        answer = process.post()
        assert problem(answer, 503) and answer.headers["retry-after"]


def test_it_starts_while_postgresql_is_down(wire: Wire) -> None:
    with new_database() as url:
        wire.cut()
        through = make_url(url).set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)
        with running(url, reached_by=through, pool_wait_seconds=1) as process:
            problem(process.post(), 503)
            wire.restore()
            eventually(lambda: process.client.get("/ready").status_code == 200)
            assert process.post().status_code == 201
