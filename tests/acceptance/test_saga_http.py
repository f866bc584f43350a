"""Sagas over HTTP services: found in the registry, called by the relay, decided by the machine, seen by their user."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from participant.saga_client import Conflict, SagaClient
from participant.sagas import Retry, Step
from tests import command_line
from tests.http_services import Answer, Call, Catalog, HttpService, http_service
from tests.platform import Platform

#: Long enough that no test sees a second attempt which nobody asked for.
PATIENT = Retry(max_attempts=10, initial_delay_seconds=600, max_delay_seconds=600)


def shop(call: Call) -> Answer:
    match call.path:
        case "/reserve":
            return 200, {"order": {"id": 5, "lines": ["a", "b"]}}
        case "/charge":
            return 200, {"paid": call.body["amount"]}
        case "/ship":
            return 200, {"to": call.body["order"]}
        case _:
            return 200, {}


@pytest.fixture(scope="module")
def running(catalog: Catalog) -> Iterator[HttpService]:
    """One for all tests: the relay keeps for a while where a service was found."""
    with http_service(shop) as service:
        catalog.add("shop", service)
        yield service


@pytest.fixture
def service(running: HttpService) -> HttpService:
    running.answer = shop
    return running


@pytest.fixture
def sagas(platform: Platform) -> Iterator[SagaClient]:
    with SagaClient("test", platform.endpoints["COORDINATOR_URL"]) as client:
        yield client


def step(verb: str, payload: Any, **changes: Any) -> Step:
    return Step("shop", payload, name=verb, action_endpoint=f"/{verb}", compensation_endpoint=f"un{verb}", **changes)


THREE = [
    step("reserve", {"sku": {"$from": "input.sku"}}),
    step("charge", {"amount": {"$from": "input.amount"}, "order": {"$from": "steps.reserve.result.order.id"}}),
    step("ship", {"order": {"$from": "steps.reserve.result.order"}, "note": {"$from": "input.note", "default": None}}),
]


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not come to hold in time"
        time.sleep(0.05)


def test_three_http_services_in_a_row_pass_their_results_on(sagas: SagaClient, service: HttpService) -> None:
    saga_id = sagas.start_saga("order", THREE, input={"sku": 7, "amount": 9.5})
    saga = sagas.wait(saga_id)
    assert saga["state"] == "COMPLETED", saga
    calls = service.calls_of(saga_id)
    assert [(call.path, call.body) for call in calls] == [
        ("/reserve", {"sku": 7}),
        ("/charge", {"amount": 9.5, "order": 5}),
        ("/ship", {"order": {"id": 5, "lines": ["a", "b"]}, "note": None}),
    ]
    assert [call.headers["idempotency-key"] for call in calls] == [
        f"{saga_id}:{name}:action" for name in ("reserve", "charge", "ship")
    ]
    assert saga["steps"][2]["result"] == {"to": {"id": 5, "lines": ["a", "b"]}}
    assert [entry["type"] for entry in sagas.history(saga_id)["entries"]] == [
        "fluxora.SagaStarted",
        *["fluxora.StepReplied"] * 3,
    ]


@pytest.mark.parametrize("status", [409, 422])
def test_a_refusal_is_compensated_in_reverse_order_with_what_was_sent(
    sagas: SagaClient, service: HttpService, status: int
) -> None:
    service.answer = lambda call: (status, {"detail": "no truck"}) if call.path == "/ship" else shop(call)
    saga_id = sagas.start_saga("order", THREE, input={"sku": 7, "amount": 9.5})
    saga = sagas.wait(saga_id)
    assert saga["state"] == "FAILED" and "no truck" in (saga["reason"] or "")
    assert [one["state"] for one in saga["steps"]] == ["COMPENSATED", "COMPENSATED", "FAILED"]
    calls = service.calls_of(saga_id)
    assert [call.path for call in calls] == ["/reserve", "/charge", "/ship", "/uncharge", "/unreserve"]
    for call, name, payload in (
        (calls[3], "charge", {"amount": 9.5, "order": 5}),
        (calls[4], "reserve", {"sku": 7}),
    ):
        assert call.body["step_id"] == name and call.body["original_payload"] == payload
        assert call.body["saga_id"] == saga_id
        assert call.headers["idempotency-key"] == f"{saga_id}:{name}:compensation"


def test_kafka_and_http_services_take_turns_in_one_saga(
    sagas: SagaClient, service: HttpService, platform: Platform
) -> None:
    mixed = [
        Step("alpha", {"n": 1}, name="first", command="enter"),
        step("reserve", {"by": {"$from": "steps.first.result.service"}}),
        Step(
            "beta", {"refuse": True, "order": {"$from": "steps.reserve.result.order.id"}}, name="last", command="enter"
        ),
    ]
    saga_id = sagas.start_saga("order", mixed)
    saga = sagas.wait(saga_id)
    assert saga["state"] == "FAILED" and "beta says no" in (saga["reason"] or "")
    assert [(call.path, call.body.get("by")) for call in service.calls_of(saga_id)] == [
        ("/reserve", "alpha"),
        ("/unreserve", None),
    ]
    entries = platform.entries([saga_id])[saga_id]
    assert entries["first", "ACTION"] == entries["first", "COMPENSATION"] == 1


def test_a_registered_saga_is_run_by_its_name(sagas: SagaClient, service: HttpService) -> None:
    name = f"order-{uuid4().hex[:8]}"
    sagas.register(name, "1", {"steps": THREE, "input_required": ["sku", "amount"]})
    saga = sagas.wait(sagas.run(name, {"sku": 7, "amount": 1}))
    assert saga["state"] == "COMPLETED" and saga["version"] == "1"
    assert saga["steps"][1]["result"] == {"paid": 1}


# ── Operators and a saga that is stuck ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stuck(sagas: SagaClient, service: HttpService) -> str:
    """A saga whose second step fails, and waits ten minutes for its next attempt."""
    service.answer = lambda call: (500, {}) if call.path == "/charge" else shop(call)
    saga_id = sagas.start_saga(
        "order", [THREE[0], step("charge", {"amount": 1}, retry=PATIENT), THREE[2]], input={"sku": 7}
    )
    eventually(lambda: sagas.get_saga_status(saga_id)["steps"][1]["reason"] is not None)
    return saga_id


def requests(sagas: SagaClient, saga_id: str) -> list[tuple[str, str, str | None, str]]:
    """What was asked: the request, by whom, why, and the verdict."""
    return [
        (told["request"], told["who"], told.get("why"), entry["verdict"])
        for entry in sagas.history(saga_id)["entries"]
        if entry["type"] == "fluxora.RequestMade" and (told := entry["input"])
    ]


def test_retry_makes_the_attempt_that_waits_at_once(sagas: SagaClient, service: HttpService, stuck: str) -> None:
    service.answer = shop
    sagas.retry(stuck, who="ada", why="it is back")
    assert sagas.wait(stuck)["state"] == "COMPLETED"
    assert service.paths(stuck) == ["/reserve", "/charge", "/charge", "/ship"]
    assert requests(sagas, stuck) == [("RETRY", "ada", "it is back", "APPLIED")]


def test_skip_takes_the_step_for_done(sagas: SagaClient, service: HttpService, stuck: str) -> None:
    sagas.skip(stuck, "charge", who="ada", why="charged by hand")
    saga = sagas.wait(stuck)
    assert saga["state"] == "COMPLETED" and saga["steps"][1]["skipped"]
    assert service.paths(stuck) == ["/reserve", "/charge", "/ship"]
    assert requests(sagas, stuck) == [("SKIP", "ada", "charged by hand", "APPLIED")]


def test_cancel_undoes_what_ran_and_what_may_have_run(sagas: SagaClient, service: HttpService, stuck: str) -> None:
    sagas.cancel(stuck, why="ordered twice")
    assert sagas.wait(stuck)["state"] == "FAILED"
    # 500 leaves open whether it was charged.
    assert service.paths(stuck) == ["/reserve", "/charge", "/uncharge", "/unreserve"]
    assert requests(sagas, stuck) == [("CANCEL", "test", "ordered twice", "APPLIED")]


def test_what_cannot_be_granted_is_refused_with_the_reason(sagas: SagaClient, stuck: str) -> None:
    with pytest.raises(Conflict, match="PENDING") as told:
        sagas.skip(stuck, "ship")
    assert told.value.state == "EXECUTING"
    sagas.cancel(stuck)
    saga = sagas.wait(stuck)
    with pytest.raises(Conflict, match="ended") as late:
        sagas.cancel(stuck)
    assert late.value.state == saga["state"] == "FAILED"
    assert [verdict for _, _, _, verdict in requests(sagas, stuck)] == ["REJECTED", "APPLIED", "REJECTED"]


def test_the_command_line_shows_and_mends_a_stuck_saga(sagas: SagaClient, platform: Platform, stuck: str) -> None:
    def fluxora(*words: str) -> str:
        environment = platform.endpoints | {"COLUMNS": "80", "PATH": "/usr/bin"}
        done = command_line.run("saga", *words, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert stuck in fluxora("list", "--state", "EXECUTING", "--service", "shop", "--younger-than", "1h")
    assert json.loads(fluxora("skip", stuck, "--who", "ada", "--json"))["saga_id"] == stuck
    sagas.wait(stuck)
    shown = fluxora("show", stuck, "--wait", "10s")
    for told in (
        "COMPLETED",
        "action 1 → shop /charge",
        "no clear answer",
        "skip asked for by ada",
        "EXECUTED, skipped",
    ):
        assert told in shown, shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert json.loads(fluxora("show", stuck, "--json"))["history"][0]["type"] == "fluxora.SagaStarted"
