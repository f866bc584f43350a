"""What operators ask sagas for, and what a saga's history shows. The processor's part is played with SQL."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from coordinator.models import HistoryPage, SagaView
from schemas import Codec
from tests.integration.fix_coordinator import Coordinator, coordinator, coordinator_database, running, saga

__all__ = ["coordinator", "coordinator_database"]  # fixtures

#: From a request to (verdict, reason, the saga's state).
Decide = Callable[[dict[str, Any]], tuple[str, str | None, str]]


@contextmanager
def machine(coordinator: Coordinator, codec: Codec, decide: Decide) -> Iterator[list[dict[str, Any]]]:
    """Answers requests as the processors do: a row of the journal and a notification, in one transaction."""
    seen: dict[str, dict[str, Any]] = {}
    stopping = threading.Event()

    def look(connection: psycopg.Connection[Any]) -> None:
        rows = connection.execute("SELECT id::text, payload FROM fluxora.outbox WHERE type = 'fluxora.RequestMade'")
        for id, payload in rows.fetchall():
            if id in seen:
                continue
            _, record = codec.decode(payload)
            verdict, reason, state = decide(record)
            record.pop("participant")
            connection.execute(
                'INSERT INTO journal (partition, "offset", transaction_id, input_type, input, outcome, reason, state, '
                'effects, at) VALUES (0, (SELECT coalesce(max("offset"), 0) + 1 FROM journal), %s, '
                "'fluxora.RequestMade', %s, %s, %s, %s, NULL, now())",
                (record["transaction_id"], json.dumps(record), verdict, reason, state),
            )
            connection.execute("SELECT pg_notify('fluxora_changed', %s)", (record["transaction_id"],))
            seen[id] = record
        connection.commit()

    def run() -> None:
        with psycopg.connect(coordinator.database_url) as connection:
            while not stopping.wait(0.02):
                look(connection)

    with psycopg.connect(coordinator.database_url) as connection:
        for (id,) in connection.execute("SELECT id::text FROM fluxora.outbox").fetchall():
            seen[id] = {}
    before = len(seen)
    thread = threading.Thread(target=run)
    thread.start()
    requests: list[dict[str, Any]] = []
    try:
        yield requests
    finally:
        stopping.set()
        thread.join()
        requests += list(seen.values())[before:]


@pytest.fixture(scope="module")
def codec(coordinator: Coordinator) -> Iterator[Codec]:
    import os

    codec = Codec(os.environ["SCHEMA_REGISTRY_URL"])
    yield codec
    codec.close()


def granted(record: dict[str, Any]) -> tuple[str, str | None, str]:
    return "APPLIED", None, "COMPENSATING"


def ask(coordinator: Coordinator, saga_id: str, verb: str, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return coordinator.client.post(f"/sagas/{saga_id}/{verb}", json=body, headers=named)


def test_a_request_is_answered_with_the_saga_once_the_machine_has_granted_it(
    coordinator: Coordinator, codec: Codec
) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    with machine(coordinator, codec, granted) as requests:
        answer = ask(coordinator, saga_id, "cancel", {"who": "ada", "why": "ordered twice"})
        assert answer.status_code == 200, answer.text
        SagaView.model_validate_json(answer.content)
        assert answer.json()["saga_id"] == saga_id
        assert ask(coordinator, saga_id, "retry").status_code == 200
        assert ask(coordinator, saga_id, "retry", {"step": "bill"}).status_code == 200
        assert ask(coordinator, saga_id, "skip", {"step": "bill"}).status_code == 200
    told = [(record["request"], record["step"], record["who"], record["why"]) for record in requests]
    assert told == [
        ("CANCEL", None, "ada", "ordered twice"),
        ("RETRY", None, "unknown", None),
        ("RETRY", "bill", "unknown", None),
        ("SKIP", "bill", "unknown", None),
    ]


def test_a_refusal_of_the_machine_is_409_with_its_state_and_reason(coordinator: Coordinator, codec: Codec) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    with machine(coordinator, codec, lambda record: ("REJECTED", "the saga has ended: COMPLETED", "COMPLETED")):
        answer = ask(coordinator, saga_id, "cancel")
    assert answer.status_code == 409 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["state"] == "COMPLETED" and "has ended" in answer.json()["detail"]


def test_a_skip_without_a_step_means_the_one_under_way_and_only_that(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    before = coordinator.counts()
    answer = ask(coordinator, saga_id, "skip", {"who": "ada"})
    assert answer.status_code == 409
    assert answer.json()["state"] == "STARTED" and "under way: none" in answer.json()["detail"]
    assert ask(coordinator, str(uuid4()), "skip").status_code == 404
    assert coordinator.counts() == before


def test_a_request_sent_again_with_its_key_is_in_the_log_once(coordinator: Coordinator, codec: Codec) -> None:
    saga_id, key = coordinator.post().json()["saga_id"], str(uuid4())
    with machine(coordinator, codec, granted) as requests:
        answers = [ask(coordinator, saga_id, "cancel", {"who": "ada"}, Idempotency_Key=key) for _ in range(3)]
        other = ask(coordinator, saga_id, "cancel", {"who": "bob"}, Idempotency_Key=key)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert other.status_code == 422 and other.json()["errors"][0]["field"] == "Idempotency-Key"
    assert len(requests) == 1


def test_without_a_decision_the_answer_is_202_with_the_saga_as_it_stands(coordinator_database: str) -> None:
    with running(coordinator_database, request_wait_seconds=0.3) as impatient:
        saga_id = impatient.post().json()["saga_id"]
        began = time.monotonic()
        late = ask(impatient, saga_id, "cancel")
        assert 0.3 <= time.monotonic() - began < 20
        asynchronous = ask(impatient, saga_id, "retry", Prefer="respond-async")
    for answer in (late, asynchronous):
        assert answer.status_code == 202 and answer.headers["location"] == f"/sagas/{saga_id}"
        assert answer.json()["state"] == "STARTED"
    assert asynchronous.headers["preference-applied"] == "respond-async"


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("skip", {"step": ""}, "step"),
        ("skip", {"step_id": ""}, "step_id"),
        ("cancel", {"step": "bill"}, "step"),
        ("cancel", {"who": ""}, "who"),
        ("cancel", {"who": "a\x00b"}, "who"),
        ("cancel", {"who": "x" * 201}, "who"),
        ("cancel", {"why": "x" * 1001}, "why"),
        ("cancel", {"why": "\x1b[2J"}, "why"),
        ("retry", {"step": 7}, "step"),
        ("retry", {"step": "x" * 101}, "step"),
        ("retry", {"step": "nul\x00"}, "step"),
        ("retry", {"unknown": 7}, "unknown"),
        ("retry", [], "body"),
    ],
)
def test_a_malformed_request_is_not_made(coordinator: Coordinator, verb: str, body: Any, field: str) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    before = coordinator.counts()
    answer = ask(coordinator, saga_id, verb, body)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field, answer.text
    assert coordinator.counts() == before


def test_a_saga_that_there_is_not_cannot_be_asked(coordinator: Coordinator) -> None:
    before = coordinator.counts()
    for verb, body in (("cancel", None), ("retry", None), ("skip", {"step": "a"})):
        assert ask(coordinator, str(uuid4()), verb, body).status_code == 404
    assert ask(coordinator, "seven", "cancel").status_code == 422
    assert coordinator.counts() == before


def test_the_history_is_the_journal_in_the_order_of_the_log(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    rows = [
        ("fluxora.SagaStarted", {"name": "order"}, "APPLIED", None, "EXECUTING", [{"send": "ACTION", "step": 0}]),
        ("fluxora.DeadlinePassed", {"due_at": 1000}, "IGNORED", "nothing is due", "EXECUTING", None),
        (
            "fluxora.StepReplied",
            {"step": "bill", "operation": "ACTION", "attempt": 1, "outcome": "DONE", "result": '{"n": 1}'},
            "APPLIED",
            None,
            "COMPLETED",
            [{"publish": "SagaCompleted", "sequence": 2, "state": "COMPLETED"}],
        ),
    ]
    for i, (type, told, verdict, reason, state, effects) in enumerate(rows):
        coordinator.sql(
            'INSERT INTO journal (partition, "offset", transaction_id, input_type, input, outcome, reason, state, '
            "effects, at) VALUES (7, %s, %s, %s, %s, %s, %s, %s, %s, now())",
            *(1_000_000 + i, saga_id, type, json.dumps(told), verdict, reason, state),
            None if effects is None else json.dumps(effects),
        )
    whole = coordinator.client.get(f"/sagas/{saga_id}/history")
    HistoryPage.model_validate_json(whole.content)
    entries = whole.json()["entries"]
    assert [entry["type"] for entry in entries] == [row[0] for row in rows]
    assert [entry["verdict"] for entry in entries] == ["APPLIED", "IGNORED", "APPLIED"]
    assert entries[0]["effects"] == [{"send": "ACTION", "step": "bill"}]
    assert entries[1]["input"] == {"due_at": "1970-01-01T00:00:01Z"} and entries[1]["effects"] == []
    assert entries[2]["input"]["result"] == {"n": 1}
    assert whole.json()["next"] is None
    paged: list[Any] = []
    url: str | None = f"/sagas/{saga_id}/history?limit=2"
    while url is not None:
        page = coordinator.client.get(url).json()
        paged += page["entries"]
        url = page["next"]
    assert paged == entries


def test_the_history_of_a_saga_that_no_processor_has_seen_is_empty(coordinator: Coordinator) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    assert coordinator.client.get(f"/sagas/{saga_id}/history").json()["entries"] == []
    assert coordinator.client.get(f"/sagas/{uuid4()}/history").status_code == 404
    for bad in ("cursor=x", "cursor=-1", "cursor=" + "9" * 19, "limit=0", "limit=501", "wat=1"):
        assert coordinator.client.get(f"/sagas/{saga_id}/history?{bad}").status_code == 422


def test_sagas_are_found_by_their_age(coordinator: Coordinator) -> None:
    name = f"aged-{uuid4().hex}"
    old, new = (coordinator.post(saga(name=name)).json()["saga_id"] for _ in range(2))
    coordinator.sql("UPDATE transactions SET created_at = now() - interval '10 minutes' WHERE id = %s", old)

    def found(**filters: str) -> set[str]:
        page = coordinator.client.get("/sagas", params={"name": name} | filters).json()
        return {item["saga_id"] for item in page["sagas"]}

    assert found(older_than="5m") == {old} and found(younger_than="5m") == {new}
    assert found(older_than="0s", younger_than="999999999d") == {old, new}
    assert found(older_than="999999999d") == set()
    page = coordinator.client.get("/sagas", params={"name": name, "younger_than": "1h", "limit": 1}).json()
    assert "younger_than=1h" in page["next"]
    for bad in ("older_than=soon", "younger_than=-1s", "older_than=5y"):
        assert coordinator.client.get(f"/sagas?{bad}").status_code == 422


def test_a_replay_is_answered_although_its_service_is_gone(coordinator_database: str) -> None:
    """Kafka is not there at all: no service can be known."""
    key = str(uuid4())
    with running(coordinator_database) as whole:
        first = whole.post(saga(), Idempotency_Key=key)
        assert first.status_code == 201
    with running(coordinator_database, kafka_bootstrap_servers="127.0.0.1:9", kafka_timeout_seconds=0.3) as alone:
        again = alone.post(saga(), Idempotency_Key=key)
        assert again.status_code == 201 and again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        assert alone.post(saga(name="other"), Idempotency_Key=key).status_code == 422
        assert alone.post(saga(), Idempotency_Key=str(uuid4())).status_code == 503
        http = saga(steps=[{"service_name": "anybody", "action_endpoint": "/do"}])
        assert alone.post(http).status_code == 201
