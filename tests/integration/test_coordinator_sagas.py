"""REST on a real PostgreSQL, Kafka and registry. What a processor writes is simulated with SQL here; the whole
loop is in the acceptance test."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from coordinator import migrations
from coordinator.models import SagaPage, SagaView
from participant.settings import sqlalchemy_url
from participant.tables import metadata as participant_metadata
from saga_processors.tables import metadata
from tests.integration.fix_coordinator import Coordinator, coordinator, coordinator_database, saga

__all__ = ["coordinator", "coordinator_database"]  # fixtures


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status and document["title"] and document["detail"]
    assert "Traceback" not in answer.text
    return document


def test_migrations_make_exactly_the_tables_of_the_metadata(coordinator_database: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    migrations.upgrade(coordinator_database)  # once more: idempotent
    engine = create_engine(sqlalchemy_url(coordinator_database), connect_args={"options": "-c search_path=public"})
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        schemas = {"include_schemas": True, "include_name": lambda name, kind, _: kind != "schema" or name == "fluxora"}
        context = MigrationContext.configure(connection, opts=schemas | {"version_table_schema": "fluxora"})
        assert compare_metadata(context, participant_metadata) == []
    engine.dispose()


def test_a_saga_is_created_with_its_input_in_the_outbox(coordinator: Coordinator) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = coordinator.post(saga(), traceparent=trace)
    assert answer.status_code == 201
    saga_id = answer.json()["saga_id"]
    assert answer.json() == {"saga_id": saga_id, "state": "STARTED"}
    assert answer.headers["location"] == f"/sagas/{saga_id}"
    (row,) = coordinator.sql("SELECT * FROM fluxora.outbox WHERE aggregateid = %s", saga_id)
    assert row[5] == "fluxora.transactions" and row[3] == "fluxora.SagaStarted" and row[7] == trace
    shown = coordinator.client.get(answer.headers["location"])
    SagaView.model_validate_json(shown.content)
    assert shown.json()["state"] == "STARTED" and shown.json()["steps"][0]["state"] == "PENDING"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"\x00", 422),
        (b'{"name":"x","steps":[]}', 422),
        (b'{"name":"x","steps":[{"service_name":"nobody-knows"}]}', 422),
        (json.dumps({"name": "x", "steps": [{"service_name": "tc-billing"}] * 2000}).encode(), 422),
        (json.dumps(saga(extra=1)).encode(), 422),
        (json.dumps({"name": "x", "steps": [{"service_name": "tc-billing", "payload": "x" * 300_000}]}).encode(), 413),
        (b" " * (1 << 20) + b"{}", 413),
    ],
)
def test_bad_input_is_a_problem_and_writes_nothing(coordinator: Coordinator, body: bytes, status: int) -> None:
    before = coordinator.counts()
    answer = coordinator.client.post("/sagas", content=body, headers={"content-type": "application/json"})
    assert problem(answer, status)["errors"][0]["rule"]
    assert coordinator.counts() == before


def test_an_unknown_service_is_named_with_the_way_to_add_it(coordinator: Coordinator) -> None:
    body = saga(steps=[{"service_name": "tc-billing"}, {"service_name": "nobody"}])
    document = problem(coordinator.post(body), 422)
    assert [error["field"] for error in document["errors"]] == ["steps[1].service_name"]
    assert "fluxora service add nobody" in document["errors"][0]["rule"]


def test_other_content_is_refused(coordinator: Coordinator) -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/json; charset=latin1"}):
        problem(coordinator.client.post("/sagas", content=b"{}", headers=headers), 415)
    gzipped = {"content-type": "application/json", "content-encoding": "gzip"}
    problem(coordinator.client.post("/sagas", content=b"{}", headers=gzipped), 415)


def test_a_chunked_body_stops_at_the_limit(coordinator: Coordinator) -> None:
    parts = urlsplit(coordinator.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as wire:
        wire.sendall(
            b"POST /sagas HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        wire.settimeout(10)
        answer = b""
        try:
            for _ in range(40):
                wire.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass  # the other end has closed, as it may
        while b"\r\n\r\n" not in answer and (read := wire.recv(65536)):
            answer += read
    assert answer.startswith(b"HTTP/1.1 413") and b"application/problem+json" in answer


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(coordinator: Coordinator) -> None:
    before = coordinator.counts()
    parts = urlsplit(coordinator.url)
    body = json.dumps(saga()).encode()
    for cut in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as wire:
            head = f"POST /sagas HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            wire.sendall(head.encode() + b"\r\n\r\n" + body[:cut])
    for _ in range(20):  # whole requests whose sender does not wait for the answer
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as wire:
            head = f"POST /sagas HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            wire.sendall(head.encode() + b"\r\n\r\n" + body)
    time.sleep(1)
    after = coordinator.counts()
    assert after[0] - before[0] == after[1] - before[1] <= 20


def test_paths_and_methods_that_there_are_not_are_problems(coordinator: Coordinator) -> None:
    problem(coordinator.client.get("/nothing"), 404)
    problem(coordinator.client.get("/sagas/"), 404)
    assert "GET" in coordinator.client.delete("/sagas/" + str(uuid4())).headers["allow"]
    problem(coordinator.client.put("/sagas"), 405)
    problem(coordinator.client.get(f"/sagas/{uuid4()}"), 404)
    problem(coordinator.client.get(f"/sagas/{uuid4()}?wait=5s"), 404)
    document = problem(coordinator.client.get("/sagas/seven"), 422)
    assert document["errors"][0]["field"] == "saga_id"


# ── Ids and keys ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_id_of_the_clients_is_taken_once(coordinator: Coordinator) -> None:
    saga_id = str(uuid4())
    answer = coordinator.post(saga(saga_id=saga_id))
    assert answer.status_code == 201 and answer.json()["saga_id"] == saga_id
    before = coordinator.counts()
    assert problem(coordinator.post(saga(saga_id=saga_id)), 409)["state"] == "STARTED"
    with_key = coordinator.post(saga(saga_id=saga_id), Idempotency_Key=f"other-{saga_id}")
    problem(with_key, 409)
    assert coordinator.counts() == before
    assert coordinator.sql("SELECT 1 FROM idempotency_keys WHERE key = %s", f"other-{saga_id}") == []


@pytest.mark.parametrize("own_id", [False, True])
def test_the_same_key_and_body_is_the_same_saga(coordinator: Coordinator, own_id: bool) -> None:
    key = str(uuid4())
    body = saga(saga_id=str(uuid4())) if own_id else saga()
    first = coordinator.post(body, Idempotency_Key=key)
    again = coordinator.post(body, Idempotency_Key=key)
    spaced = coordinator.client.post(
        "/sagas",
        content=json.dumps(body, indent=3, sort_keys=True),
        headers={"content-type": "application/json", "idempotency-key": key},
    )
    assert first.status_code == again.status_code == spaced.status_code == 201
    assert first.json() == again.json() == spaced.json()
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    before = coordinator.counts()
    document = problem(coordinator.post(saga(name="another"), Idempotency_Key=key), 422)
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert coordinator.counts() == before


@pytest.mark.parametrize("own_id", [False, True])
def test_equal_keys_at_the_same_moment_make_one_saga(coordinator: Coordinator, own_id: bool) -> None:
    before = coordinator.counts()
    keys = [str(uuid4()) for _ in range(8)]
    bodies = {key: saga(saga_id=str(uuid4())) if own_id else saga() for key in keys}
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda key: (key, coordinator.post(bodies[key], Idempotency_Key=key)), keys * 12))
    assert {answer.status_code for _, answer in answers} == {201}
    assert len({answer.json()["saga_id"] for _, answer in answers}) == len(keys)
    assert len({(key, answer.json()["saga_id"]) for key, answer in answers}) == len(keys)
    assert sum("idempotency-replayed" not in answer.headers for _, answer in answers) == len(keys)
    after = coordinator.counts()
    assert (after[0] - before[0], after[1] - before[1]) == (len(keys), len(keys))


def test_one_key_with_two_bodies_at_the_same_moment_makes_one_saga(coordinator: Coordinator) -> None:
    for _ in range(10):
        key = str(uuid4())
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda i, key=key: coordinator.post(saga(name=f"n-{i % 2}"), Idempotency_Key=key), range(8))
            )
        won = {answer.json()["saga_id"] for answer in answers if answer.status_code == 201}
        assert len(won) == 1 and sorted(answer.status_code for answer in answers) == [201] * 4 + [422] * 4


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_show_each_saga_once_newest_first(coordinator: Coordinator) -> None:
    name = f"paged-{uuid4().hex}"
    made = [coordinator.post(saga(name=name)).json()["saga_id"] for _ in range(7)]
    # The same moment for some: the id decides then.
    coordinator.sql("UPDATE transactions SET created_at = date_trunc('minute', now()) WHERE name = %s", name)
    url: str | None = f"/sagas?name={name}&limit=3&state=STARTED&state=EXECUTING&service=tc-billing"
    seen: list[str] = []
    while url is not None:
        answer = coordinator.client.get(url)
        SagaPage.model_validate_json(answer.content)
        page = answer.json()
        seen += [item["saga_id"] for item in page["sagas"]]
        url = page["next"]
    assert len(seen) == 7 and set(seen) == set(made) and seen == sorted(seen, reverse=True)


def test_filters_choose(coordinator: Coordinator) -> None:
    name = f"filtered-{uuid4().hex}"
    one, two = (coordinator.post(saga(name=name)).json()["saga_id"] for _ in range(2))
    coordinator.sql("UPDATE transactions SET needs_attention = true, state = 'COMPENSATING' WHERE id = %s", one)
    at = coordinator.client.get(f"/sagas/{two}").json()["created_at"]

    def found(**filters: str) -> set[str]:
        page = coordinator.client.get("/sagas", params={"name": name} | filters).json()
        return {item["saga_id"] for item in page["sagas"]}

    assert found() == {one, two}
    assert found(needs_attention="true") == {one} and found(needs_attention="false") == {two}
    assert found(state="COMPENSATING") == {one} and found(state="FAILED") == set()
    assert found(service="other") == set()
    assert found(created_before=at) == {one} and found(created_after=at) == set()


@pytest.mark.parametrize(
    "query",
    [
        "stat=STARTED",
        "state=DONE",
        "limit=0",
        "limit=501",
        "limit=x",
        "cursor=x",
        "cursor=AAAA",
        "created_after=now",
        "name=%00",
        "service=%00",
        "created_before=2026-01-01T00:00:00",
        "created_before=0.5",
        "needs_attention=perhaps",
        "name=a&name=",
    ],
)
def test_a_bad_query_is_malformed(coordinator: Coordinator, query: str) -> None:
    assert problem(coordinator.client.get(f"/sagas?{query}"), 422)["errors"]


@pytest.mark.parametrize("query", ["wait=soon", "wait=", "wait=-1s", "wat=1s"])
def test_a_bad_wait_is_malformed(coordinator: Coordinator, query: str) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    assert problem(coordinator.client.get(f"/sagas/{saga_id}?{query}"), 422)["errors"]


# ── Health and documents ──────────────────────────────────────────────────────────────────────────────────────


def test_health_figures_and_the_openapi_document(coordinator: Coordinator) -> None:
    client = coordinator.client
    assert client.get("/health").json() == {"status": "ok", "reasons": []}
    assert client.get("/ready").json() == {"status": "ok", "reasons": [], "warnings": []}
    figures = client.get("/metrics").text
    assert 'fluxora_coordinator_requests_total{method="GET",route="/health",status="200"}' in figures
    document = client.get("/openapi.json").json()
    creation = document["paths"]["/sagas"]["post"]
    assert "application/problem+json" in creation["responses"]["422"]["content"]
    assert document["components"]["schemas"]["SagaRequest"]["examples"]
    names = set(document["components"]["schemas"])
    for reference in json.dumps(document).split('"$ref": "')[1:]:
        assert reference.split('"')[0].removeprefix("#/components/schemas/") in names
    example = document["components"]["schemas"]["SagaRequest"]["examples"][0]
    for step in example["steps"]:
        step["service_name"] = "tc-billing"
    assert coordinator.post(example).status_code == 201
    assert client.put("/sagas").headers["allow"] == "GET, POST"


# ── Anything at all ───────────────────────────────────────────────────────────────────────────────────────────

_TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_STEP = st.fixed_dictionaries(
    {"service_name": st.just("tc-billing")},
    optional={
        "payload": _JSON,
        "name": _TEXT,
        "depends_on": st.lists(_TEXT, max_size=2),
        "kind": _TEXT,
        "retry": _JSON,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(
        st.binary(max_size=50),
        _JSON.map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries(
            {"name": st.just("fuzz"), "steps": st.lists(_STEP | st.just({"service_name": "tc-billing"}), max_size=3)},
            optional={"timeout_seconds": st.floats(), "saga_id": st.uuids().map(str)},
        ).map(lambda value: json.dumps(value).encode()),
    ),
    key=st.none() | st.binary(max_size=30),
)
def test_no_body_and_no_key_makes_it_fail(coordinator: Coordinator, body: bytes, key: bytes | None) -> None:
    headers = {b"content-type": b"application/json"}
    if key is not None:
        headers[b"idempotency-key"] = key.translate(None, bytes(range(33)) + b"\x7f")
    answer = coordinator.client.post("/sagas", content=body, headers=list(headers.items()))
    assert answer.status_code in (201, 400, 409, 413, 422), (answer.status_code, answer.text)
    if answer.status_code == 201:
        shown = coordinator.client.get(answer.headers["location"])
        assert shown.status_code == 200
        SagaView.model_validate_json(shown.content)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/sagas", "/sagas/01928f6e-3f1c-7d2a-9c1b-5f6a7b8c9d0e", "/sagas/"])
    | _TEXT.map(lambda text: f"/sagas/{quote(text)}"),
    query=st.dictionaries(
        st.sampled_from(["name", "state", "service", "created_before", "created_after", "limit", "cursor", "wait"])
        | _TEXT,
        _TEXT | st.integers().map(str) | st.datetimes().map(lambda at: f"{at.isoformat()}+14:00"),
        max_size=3,
    ),
)
def test_no_query_makes_it_fail(coordinator: Coordinator, path: str, query: dict[str, str]) -> None:
    query = {name: "0.01" if name == "wait" and value.isdecimal() else value for name, value in query.items()}
    answer = coordinator.client.get(f"{path}?{urlencode(query)}")
    assert answer.status_code in (200, 404, 422), (answer.status_code, answer.text)
