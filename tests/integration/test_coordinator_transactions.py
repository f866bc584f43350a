"""``/transactions`` on a real PostgreSQL and registry. A small processor (fix_machine) folds with the real machine; the
whole loop is in the acceptance test."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import make_url

from coordinator.transaction_models import (
    Accepted,
    ParticipantAdded,
    TransactionCreated,
    TransactionHistory,
    TransactionPage,
    TransactionView,
    VerbAnswer,
)
from saga_processors.transaction import Outcome
from tests.integration.fix_coordinator import Coordinator, Wire, coordinator_database, eventually, running
from tests.integration.fix_machine import SmallProcessor, folding
from tests.integration.test_coordinator_sagas import problem

__all__ = ["coordinator_database"]  # fixtures

SERVICE = {"service_name": "tc-billing"}


@pytest.fixture(scope="module")
def coordinator(coordinator_database: str) -> Iterator[Coordinator]:
    with running(coordinator_database, request_wait_seconds=2) as process:
        eventually(lambda: process.client.get("/ready").status_code == 200)
        yield process


@pytest.fixture(scope="module")
def small(coordinator: Coordinator) -> Iterator[SmallProcessor]:
    with folding(coordinator.database_url) as processor:
        yield processor


@pytest.fixture
def machine(small: SmallProcessor) -> Iterator[SmallProcessor]:
    yield small
    small.votes = {}
    small.deaf = set()
    small.slow = 0.0
    small.running.set()


def post(coordinator: Coordinator, path: str, body: Any = None, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        return coordinator.client.post(path, headers=given)
    return coordinator.client.post(path, json=body, headers=given)


def begin(coordinator: Coordinator, **body: Any) -> str:
    answer = post(coordinator, "/transactions", body or None)
    assert answer.status_code == 201, answer.text
    TransactionCreated.model_validate_json(answer.content)
    return str(answer.json()["transaction_id"])


def add(coordinator: Coordinator, id: str, body: Any = None, **headers: str) -> httpx.Response:
    return post(coordinator, f"/transactions/{id}/participants", body or SERVICE, **headers)


def ask(coordinator: Coordinator, id: str, verb: str, body: Any = None, **headers: str) -> httpx.Response:
    return post(coordinator, f"/transactions/{id}/{verb}", body, **headers)


def shown(coordinator: Coordinator, id: str, query: str = "") -> dict[str, Any]:
    answer = coordinator.client.get(f"/transactions/{id}{query}")
    assert answer.status_code == 200, answer.text
    TransactionView.model_validate_json(answer.content)
    document: dict[str, Any] = answer.json()
    return document


def url(name: str, **more: Any) -> dict[str, Any]:
    return {"service_name": name, "service_url": "http://127.0.0.1:9/base"} | more


# ── The way through ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_is_written_with_its_input_and_can_be_read_at_once(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    machine.running.clear()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = post(
        coordinator,
        "/transactions",
        {"participants": [SERVICE | {"payload": {"n": 1}}], "metadata": {"order": 7}, "timeout_seconds": 5},
        traceparent=trace,
    )
    id = answer.json()["transaction_id"]
    assert answer.status_code == 201 and answer.json() == {"transaction_id": id, "state": "STARTED"}
    assert answer.headers["location"] == f"/transactions/{id}"
    ((topic, type, key, traced),) = coordinator.sql(
        "SELECT topic, type, aggregateid, traceparent FROM fluxora.outbox WHERE aggregateid = %s", id
    )
    assert (topic, type, key, traced) == ("fluxora.transactions", "fluxora.TransactionStarted", id, trace)
    document = shown(coordinator, id)
    assert document["state"] == "STARTED" and document["metadata"] == {"order": 7}
    [participant] = document["participants"]
    assert participant["state"] == "PREPARING" and participant["transport"] == "KAFKA"
    assert participant["payload"] == {"n": 1}
    assert coordinator.client.get(f"/sagas/{id}").status_code == 404


def test_prepare_then_commit_leads_to_committed(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator)
    added = add(coordinator, id, SERVICE | {"payload": {"amount": 3}})
    assert added.status_code == 201, added.text
    ParticipantAdded.model_validate_json(added.content)
    assert added.json()["participant_added"] == "tc-billing"
    assert added.headers["location"] == f"/transactions/{id}"
    prepared = ask(coordinator, id, "prepare")
    VerbAnswer.model_validate_json(prepared.content)
    assert prepared.status_code == 200
    assert prepared.json() == {"transaction_id": id, "state": "PREPARED", "decided": False}
    committed = ask(coordinator, id, "commit", {"who": "me", "why": "all is well"})
    assert committed.status_code == 200
    assert committed.json() == {"transaction_id": id, "state": "COMMITTED", "decided": True}
    document = shown(coordinator, id, "?wait=5s")
    assert [p["state"] for p in document["participants"]] == ["COMMITTED"]
    assert ask(coordinator, id, "commit").json()["state"] == "COMMITTED"
    assert problem(ask(coordinator, id, "abort"), 409)["state"] == "COMMITTED"


def test_a_no_aborts(coordinator: Coordinator, machine: SmallProcessor) -> None:
    machine.votes["tc-billing"] = Outcome.REFUSED
    id = begin(coordinator, participants=[SERVICE])
    prepared = ask(coordinator, id, "prepare")
    assert prepared.status_code == 200 and prepared.json()["state"] in ("ABORTING", "ABORTED")
    assert shown(coordinator, id, "?wait=5s")["state"] == "ABORTED"
    refused = problem(ask(coordinator, id, "commit"), 409)
    assert refused["state"] == "ABORTED" and "ABORTED" in refused["detail"]


def test_auto_commit_commits_by_itself(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator, participants=[SERVICE], auto_commit=True)
    assert ask(coordinator, id, "prepare").json()["state"] in ("COMMITTING", "COMMITTED")
    assert shown(coordinator, id, "?wait=5s")["state"] == "COMMITTED"


def test_without_participants_it_commits_and_aborts(coordinator: Coordinator, machine: SmallProcessor) -> None:
    one, two = begin(coordinator), begin(coordinator)
    assert ask(coordinator, one, "prepare").json()["state"] == "PREPARED"
    assert ask(coordinator, one, "commit").json()["state"] == "COMMITTED"
    assert ask(coordinator, two, "abort").json() == {"transaction_id": two, "state": "ABORTED", "decided": True}


def test_a_decision_whose_participants_are_away_is_answered_as_decided(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    machine.deaf.add("tc-billing")
    id = begin(coordinator, participants=[SERVICE])
    ask(coordinator, id, "prepare")
    committing = ask(coordinator, id, "commit")
    assert committing.status_code == 200
    assert committing.json() == {"transaction_id": id, "state": "COMMITTING", "decided": True}


def test_votes_that_take_longer_than_the_wait_are_a_202(coordinator: Coordinator, machine: SmallProcessor) -> None:
    machine.votes["tc-billing"] = None
    id = begin(coordinator, participants=[SERVICE])
    answer = ask(coordinator, id, "prepare")
    assert answer.status_code == 202 and answer.json() == {"transaction_id": id, "state": "PREPARING"}
    assert answer.headers["location"] == f"/transactions/{id}"
    assert problem(ask(coordinator, id, "commit"), 409)["state"] == "PREPARING"


def test_two_callers_that_race_get_one_truth(coordinator: Coordinator, machine: SmallProcessor) -> None:
    for _ in range(10):
        id = begin(coordinator, participants=[SERVICE])
        ask(coordinator, id, "prepare")
        with ThreadPoolExecutor(2) as pool:
            commit, abort = pool.map(lambda verb, one=id: ask(coordinator, one, verb), ["commit", "abort"])
        end = shown(coordinator, id, "?wait=5s")["state"]
        won, lost = (commit, abort) if end == "COMMITTED" else (abort, commit)
        assert won.status_code == 200 and won.json()["state"] == end
        assert problem(lost, 409)["state"] in ("COMMITTING", "COMMITTED", "ABORTING", "ABORTED")
        assert problem(lost, 409)["state"][:5] == end[:5]


# ── Participants ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_participant_again_is_answered_alike_and_another_under_its_name_is_refused(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    id = begin(coordinator)
    first = add(coordinator, id, SERVICE | {"payload": {"a": 1, "b": 2}})
    again = add(coordinator, id, SERVICE | {"payload": {"b": 2, "a": 1}})
    assert first.status_code == again.status_code == 201 and first.json() == again.json()
    problem(add(coordinator, id, SERVICE | {"payload": {"a": 2}}), 409)
    assert len(shown(coordinator, id)["participants"]) == 1


def test_after_prepare_nobody_is_added(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator)
    ask(coordinator, id, "prepare")
    refused = problem(add(coordinator, id), 409)
    assert refused["state"] == "PREPARED" and "STARTED" in refused["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "service_name"),
        ({"service_name": "a b"}, "service_name"),
        ({"service_name": "nobody-knows"}, "service_name"),
        (SERVICE | {"payload": [1]}, "payload"),
        (SERVICE | {"payload": "text"}, "payload"),
        (SERVICE | {"prepare_endpoint": "http://evil/x"}, "prepare_endpoint"),
        (SERVICE | {"commit_endpoint": "/../x"}, "commit_endpoint"),
        (SERVICE | {"service_url": "http://169.254.169.254/"}, "service_url"),
        (SERVICE | {"service_url": "http://a:b@127.0.0.1/"}, "service_url"),
        (SERVICE | {"service_url": "ftp://127.0.0.1/"}, "service_url"),
        (SERVICE | {"service_url": "http://example.org/"}, "service_url"),
        (SERVICE | {"serviceurl": "x"}, "serviceurl"),
    ],
)
def test_a_participant_that_breaks_a_rule_is_refused_wherever_it_comes(
    coordinator: Coordinator, machine: SmallProcessor, body: dict[str, Any], field: str
) -> None:
    id = begin(coordinator)
    before = coordinator.counts()
    told = problem(post(coordinator, f"/transactions/{id}/participants", body), 422)
    assert told["errors"][0]["field"] == field and told["errors"][0]["rule"]
    told = problem(post(coordinator, "/transactions", {"participants": [SERVICE, body]}), 422)
    assert told["errors"][0]["field"] == f"participants[1].{field}"
    assert coordinator.counts() == before


def test_an_unknown_participant_is_told_where_it_was_looked_for_and_how_to_add_it(coordinator: Coordinator) -> None:
    told = problem(post(coordinator, "/transactions", {"participants": [{"service_name": "nobody"}]}), 422)
    rule = told["errors"][0]["rule"]
    assert "registry" in rule and "Kafka" in rule and "fluxora service add nobody" in rule


def test_a_registry_that_is_down_is_a_503_for_those_that_only_it_could_know(
    coordinator_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_REGISTRY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FLUXORA_SERVICE_MAP", '{"mapped": "http://127.0.0.1:7777"}')
    monkeypatch.setenv("FLUXORA_ALLOWED_HOSTS", "127.0.0.1")
    with running(coordinator_database) as process:
        eventually(lambda: process.client.get("/ready").status_code == 200)
        refused = post(process, "/transactions", {"participants": [{"service_name": "nobody"}]})
        assert problem(refused, 503) and refused.headers["retry-after"]
        id = begin(process, participants=[SERVICE, {"service_name": "mapped"}, url("by-url")])
        found = {p["service_name"]: (p["transport"], p["service_url"]) for p in shown(process, id)["participants"]}
        assert found == {
            "tc-billing": ("KAFKA", None),
            "mapped": ("HTTP", None),
            "by-url": ("HTTP", "http://127.0.0.1:9/base"),
        }
        many = begin(process, participants=[url(f"p-{i}", payload={"i": i}) for i in range(500)])
        assert [p["payload"]["i"] for p in shown(process, many)["participants"]] == list(range(500))
        problem(post(process, "/transactions", {"participants": [url(f"p-{i}") for i in range(1001)]}), 422)
        twice = problem(post(process, "/transactions", {"participants": [url("a"), url("a")]}), 422)
        assert twice["errors"][0]["field"] == "participants[1].service_name"


def test_a_participant_that_was_added_is_answered_alike_when_it_can_be_found_no_more(
    coordinator_database: str, machine: SmallProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, key, late, early = {"service_name": "mapped"}, str(uuid4()), str(uuid4()), {"Prefer": "respond-async"}
    monkeypatch.setenv("FLUXORA_ALLOWED_HOSTS", "127.0.0.1")
    monkeypatch.setenv("FLUXORA_SERVICE_MAP", '{"mapped": "http://127.0.0.1:7777"}')
    with running(coordinator_database) as process:
        eventually(lambda: process.client.get("/ready").status_code == 200)
        id, other = begin(process), begin(process)
        first = add(process, id, wanted, Idempotency_Key=key)
        assert first.status_code == 201 and first.json()["transport"] == "HTTP"
        ask(process, other, "prepare")
        refused = add(process, other, wanted, Idempotency_Key=late)
        assert problem(refused, 409)["state"] == "PREPARED"
    monkeypatch.setenv("FLUXORA_SERVICE_MAP", "{}")
    monkeypatch.setenv("SERVICE_REGISTRY_URL", "http://127.0.0.1:9")
    with running(coordinator_database) as process:
        eventually(lambda: process.client.get("/ready").status_code == 200)
        again = add(process, id, wanted, Idempotency_Key=key)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["location"] == first.headers["location"]
        assert add(process, id, wanted, Idempotency_Key=key, **early).status_code == 202
        told = problem(add(process, other, wanted, Idempotency_Key=late), 409)
        assert (told["state"], told["detail"]) == ("PREPARED", refused.json()["detail"])
        other_body = problem(add(process, id, wanted | {"payload": {"n": 1}}, Idempotency_Key=key), 422)
        assert other_body["errors"][0]["field"] == "Idempotency-Key"
        for unknown in ({}, {"Idempotency_Key": str(uuid4())}):
            assert problem(add(process, id, wanted, **unknown), 503)
    ((count,),) = process.sql("SELECT count(*) FROM fluxora.outbox WHERE aggregateid = %s", id)
    assert count == 2, "the beginning and one participant"


# ── Not waiting, and keys ─────────────────────────────────────────────────────────────────────────────────────


def test_who_does_not_want_to_wait_gets_202_at_once(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator, participants=[SERVICE])
    machine.running.clear()
    began = time.monotonic()
    answer = ask(coordinator, id, "abort", Prefer="respond-async")
    assert time.monotonic() - began < 1.5
    Accepted.model_validate_json(answer.content)
    assert answer.status_code == 202 and answer.headers["location"] == f"/transactions/{id}"
    assert answer.headers["preference-applied"] == "respond-async"
    machine.running.set()
    assert shown(coordinator, id, "?wait=10s")["state"] == "ABORTED"
    machine.running.clear()
    open_one = begin(coordinator)
    assert add(coordinator, open_one, Prefer="respond-async").status_code == 202
    machine.running.set()
    eventually(lambda: len(shown(coordinator, open_one)["participants"]) == 1)


def test_without_a_decision_in_time_it_is_202_and_the_request_counts_later(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    machine.running.clear()
    id = begin(coordinator)
    began = time.monotonic()
    answer = ask(coordinator, id, "abort")
    assert answer.status_code == 202 and answer.json() == {"transaction_id": id, "state": "STARTED"}
    assert 1.5 < time.monotonic() - began < 5
    assert "preference-applied" not in answer.headers
    machine.running.set()
    assert shown(coordinator, id, "?wait=10s")["state"] == "ABORTED"


def test_a_keyed_request_is_in_the_log_once_and_answered_alike(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    id = begin(coordinator, participants=[SERVICE])
    ask(coordinator, id, "prepare")
    key = str(uuid4())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(coordinator, id, "commit", Idempotency_Key=key), range(8)))
    assert {(a.status_code, a.json()["state"]) for a in answers} == {(200, "COMMITTED")}
    ((count,),) = coordinator.sql(
        "SELECT count(*) FROM fluxora.outbox WHERE aggregateid = %s AND type = 'fluxora.RequestMade'", id
    )
    assert count == 2  # prepare and one commit
    other = begin(coordinator)
    for reused in (
        ask(coordinator, id, "abort", Idempotency_Key=key),
        ask(coordinator, other, "commit", Idempotency_Key=key),
        ask(coordinator, id, "commit", {"why": "x"}, Idempotency_Key=key),
        post(coordinator, "/transactions", {}, Idempotency_Key=key),
    ):
        assert problem(reused, 422)["errors"][0]["field"] == "Idempotency-Key"


def test_a_keyed_request_that_was_refused_stays_refused(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator)
    key = str(uuid4())
    assert problem(ask(coordinator, id, "commit", Idempotency_Key=key), 409)["state"] == "STARTED"
    ask(coordinator, id, "prepare")
    assert problem(ask(coordinator, id, "commit", Idempotency_Key=key), 409)["state"] == "STARTED"
    assert ask(coordinator, id, "commit").status_code == 200


def test_a_keyed_creation_makes_one_transaction(coordinator: Coordinator, machine: SmallProcessor) -> None:
    key = str(uuid4())
    one = post(coordinator, "/transactions", {"metadata": 1}, Idempotency_Key=key)
    two = post(coordinator, "/transactions", {"metadata": 1}, Idempotency_Key=key)
    assert one.status_code == two.status_code == 201 and one.json() == two.json()
    assert two.headers["idempotency-replayed"] == "true"
    own = str(uuid4())
    assert begin(coordinator, transaction_id=own) == own
    assert problem(post(coordinator, "/transactions", {"transaction_id": own}), 409)["state"] == "STARTED"


def test_many_requests_at_once_are_all_answered(coordinator: Coordinator, machine: SmallProcessor) -> None:
    ids = [begin(coordinator) for _ in range(60)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda one: ask(coordinator, one, "prepare"), ids))
    assert {a.status_code for a in answers} <= {200, 202}
    eventually(lambda: {shown(coordinator, id)["state"] for id in ids} == {"PREPARED"})


# ── Outages ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def wire(coordinator_database: str) -> Iterator[Wire]:
    address = make_url(coordinator_database)
    made = Wire(address.host or "127.0.0.1", address.port or 5432)
    yield made
    made.close()


@pytest.fixture(scope="module")
def behind_the_wire(coordinator_database: str, wire: Wire) -> Iterator[Coordinator]:
    through = make_url(coordinator_database).set(host="127.0.0.1", port=wire.port)
    with running(
        coordinator_database,
        reached_by=through.render_as_string(hide_password=False),
        listen_check_seconds=1,
        statement_timeout_seconds=1,
        pool_wait_seconds=1,
        request_wait_seconds=30,
    ) as process:
        yield process
        wire.restore()


@pytest.fixture
def cuttable(behind_the_wire: Coordinator, wire: Wire) -> Coordinator:
    wire.restore()
    eventually(lambda: behind_the_wire.client.get("/ready").status_code == 200)
    return behind_the_wire


def test_a_caller_whose_wake_up_was_lost_is_answered_when_the_connection_is_back(
    cuttable: Coordinator, wire: Wire, machine: SmallProcessor
) -> None:
    ids = [begin(cuttable) for _ in range(5)]
    machine.running.clear()
    time.sleep(0.2)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, cuttable, id, "abort") for id in ids]
        eventually(lambda: "fluxora_coordinator_waiters 5.0" in cuttable.client.get("/metrics").text)
        wire.cut()
        machine.running.set()  # it does not go through the wire: nobody hears its NOTIFY
        time.sleep(1)
        began = time.monotonic()
        wire.restore()
        told = [answer.result(25) for answer in answers]
        assert time.monotonic() - began < 20
    assert {(answer.status_code, answer.json()["state"]) for answer in told} == {(200, "ABORTED")}


def test_without_postgresql_every_call_says_so_and_nothing_is_half_done(
    cuttable: Coordinator, wire: Wire, machine: SmallProcessor
) -> None:
    id = begin(cuttable)
    wire.cut()
    for answer in (
        post(cuttable, "/transactions"),
        add(cuttable, id),
        ask(cuttable, id, "commit"),
        cuttable.client.get(f"/transactions/{id}"),
        cuttable.client.get("/transactions"),
        cuttable.client.get(f"/transactions/{id}/history"),
    ):
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
    wire.restore()
    eventually(lambda: cuttable.client.get("/ready").status_code == 200)
    assert ask(cuttable, id, "abort").json()["state"] == "ABORTED"


# ── Bad requests ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_there_is_404_and_nothing_is_written(coordinator: Coordinator, machine: SmallProcessor) -> None:
    saga_id = coordinator.post().json()["saga_id"]
    before = coordinator.counts()
    for id in (str(uuid4()), saga_id):
        for verb in ("prepare", "commit", "abort"):
            problem(ask(coordinator, id, verb), 404)
            problem(ask(coordinator, id, verb, Idempotency_Key=f"k-{id}", Prefer="respond-async"), 404)
        problem(add(coordinator, id), 404)
        problem(add(coordinator, id, {"service_name": "nobody-of-this-name"}), 404)
        problem(coordinator.client.get(f"/transactions/{id}"), 404)
        problem(coordinator.client.get(f"/transactions/{id}?wait=1s"), 404)
        problem(coordinator.client.get(f"/transactions/{id}/history"), 404)
    assert coordinator.counts() == before
    assert coordinator.sql("SELECT 1 FROM idempotency_keys WHERE key = %s", f"k-{saga_id}") == []
    problem(ask(coordinator, "seven", "commit"), 422)


def test_a_state_that_takes_nobody_is_told_before_a_name_that_is_nowhere(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    nobody = {"service_name": "nobody-of-this-name"}
    id = post(coordinator, "/transactions").json()["transaction_id"]
    problem(add(coordinator, id, nobody), 422)
    assert ask(coordinator, id, "abort").status_code == 200
    conflict = problem(add(coordinator, id, nobody), 409)
    assert conflict["state"] in ("ABORTING", "ABORTED")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"[]", 422),
        (b'{"timeout_seconds": 0}', 422),
        (b'{"timeout_seconds": "30"}', 422),
        (b'{"timeout_seconds": 1e9}', 422),
        (b'{"participants": {}}', 422),
        (b'{"participant": []}', 422),
        (b" " * (1 << 20) + b"{}", 413),
        (json.dumps({"participants": [SERVICE | {"payload": {"x": "x" * 300_000}}]}).encode(), 413),
    ],
)
def test_a_bad_transaction_is_a_problem_and_writes_nothing(
    coordinator: Coordinator, machine: SmallProcessor, body: bytes, status: int
) -> None:
    before = coordinator.counts()
    answer = coordinator.client.post("/transactions", content=body, headers={"content-type": "application/json"})
    assert problem(answer, status)["errors"][0]["rule"]
    assert coordinator.counts() == before


def test_a_bad_reason_is_malformed(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator)
    for body in ({"why": "\0"}, {"who": "x" * 201}, {"because": "x"}):
        assert problem(ask(coordinator, id, "abort", body), 422)["errors"][0]["field"] in body
    assert shown(coordinator, id)["state"] == "STARTED"


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_filters_and_pages(coordinator: Coordinator, machine: SmallProcessor) -> None:
    machine.running.clear()  # it would write the rows that this test makes up
    time.sleep(0.2)
    made = [begin(coordinator, participants=[SERVICE]) for _ in range(5)]
    coordinator.sql(
        "UPDATE transactions SET services = '{paged}', created_at = created_at - interval '1 hour' "
        "WHERE id = ANY(%s::uuid[])",
        made,
    )
    coordinator.sql("UPDATE transactions SET needs_attention = true, state = 'COMMITTING' WHERE id = %s", made[0])

    def found(**filters: str) -> set[str]:
        answer = coordinator.client.get("/transactions", params={"participant": "paged"} | filters)
        TransactionPage.model_validate_json(answer.content)
        return {one["transaction_id"] for one in answer.json()["transactions"]}

    assert found() == set(made)
    assert found(state="COMMITTING") == {made[0]} == found(needs_attention="true")
    assert found(older_than="30m") == set(made) and found(younger_than="30m") == set()
    assert found(older_than="999999999d") == set() == found(older_than="2h") and found(younger_than="2h") == set(made)
    assert found(participant="other") == set()
    seen: list[str] = []
    following: str | None = "/transactions?participant=paged&limit=2&older_than=30m"
    while following is not None:
        page = coordinator.client.get(following).json()
        seen += [one["transaction_id"] for one in page["transactions"]]
        following = page["next"]
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize(
    "query", ["state=DONE", "limit=501", "older_than=old", "younger_than=", "cursor=x", "stat=x", "participant=%00"]
)
def test_a_bad_query_is_malformed(coordinator: Coordinator, query: str) -> None:
    assert problem(coordinator.client.get(f"/transactions?{query}"), 422)["errors"]


def test_the_history_tells_who_asked_and_why(coordinator: Coordinator, machine: SmallProcessor) -> None:
    id = begin(coordinator, participants=[SERVICE])
    ask(coordinator, id, "prepare")
    ask(coordinator, id, "commit", {"who": "ada", "why": "because"})
    ask(coordinator, id, "abort")
    eventually(lambda: shown(coordinator, id)["state"] == "COMMITTED")
    answer = coordinator.client.get(f"/transactions/{id}/history")
    TransactionHistory.model_validate_json(answer.content)
    entries = answer.json()["entries"]
    assert entries[0]["type"] == "fluxora.TransactionStarted" and entries[0]["verdict"] == "APPLIED"
    [commit] = [e for e in entries if (e["input"] or {}).get("who") == "ada"]
    assert commit["input"]["request"] == "COMMIT" and commit["input"]["why"] == "because"
    assert commit["state"] == "COMMITTING" and commit["effects"]
    assert entries[-1]["verdict"] == "REJECTED" and entries[-1]["reason"]
    paged: list[Any] = []
    cursor = ""
    while True:
        page = coordinator.client.get(f"/transactions/{id}/history?limit=2{cursor}").json()
        paged += page["entries"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert paged == entries


def test_the_openapi_document_is_whole(coordinator: Coordinator, machine: SmallProcessor) -> None:
    document = coordinator.client.get("/openapi.json").json()
    names = set(document["components"]["schemas"])
    for reference in json.dumps(document).split('"$ref": "')[1:]:
        assert reference.split('"')[0].removeprefix("#/components/schemas/") in names
    page = coordinator.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /transactions/{transaction_id}/commit" in page.text and "openapi.json" in page.text
    assert "http://" not in page.text and "https://" not in page.text  # nothing is loaded from elsewhere
    for path in ("", "/{transaction_id}", "/{transaction_id}/participants", "/{transaction_id}/commit"):
        assert f"/transactions{path}" in document["paths"]
    example = document["components"]["schemas"]["TransactionRequest"]["examples"][0]
    for participant, name in zip(example["participants"], ("tc-billing", "tc-billing2"), strict=True):
        participant["service_name"] = name
    example["participants"].pop()
    assert post(coordinator, "/transactions", example).status_code == 201


def test_what_is_stored_of_a_transaction_and_cannot_be_read_is_shown_and_hides_no_other(
    coordinator: Coordinator, machine: SmallProcessor
) -> None:
    id = begin(coordinator, participants=[SERVICE])
    ask(coordinator, id, "prepare")
    saga_id = coordinator.post().json()["saga_id"]
    for broken in ("[]", '{"steps": [{}], "participants": [{}]}', "null"):
        coordinator.sql(
            "UPDATE transactions SET definition = %s::json WHERE id = ANY(%s::uuid[]) RETURNING 1",
            broken,
            [id, saga_id],
        )
        document = shown(coordinator, id)
        assert (document["state"], document["participants"]) == ("PREPARED", [])
        assert "definition cannot be read" in document["reason"]
        saga = coordinator.client.get(f"/sagas/{saga_id}")
        assert (saga.status_code, saga.json()["state"], saga.json()["steps"]) == (200, "STARTED", [])
        assert "definition cannot be read" in saga.json()["reason"]
        for path in (f"/transactions/{id}", f"/sagas/{saga_id}"):
            assert coordinator.client.get(f"{path}/history").status_code == 200
            assert coordinator.client.get(f"{path}?wait=1ms").status_code == 200
        for path, of_one in (("/transactions", "transaction_id"), ("/sagas", "saga_id")):
            page = coordinator.client.get(path)
            assert page.status_code == 200
            assert {id, saga_id} & {one[of_one] for one in page.json()[path[1:]]}
    entries = coordinator.client.get(f"/transactions/{id}/history").json()["entries"]
    assert entries[1]["effects"][1]["participant"] == 0, "its number, because its name is gone"
