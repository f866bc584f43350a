"""Registered definitions over REST, and the sagas that run them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from coordinator.models import DefinitionPage, DefinitionRegistered, DefinitionView, SagaView
from tests.integration.fix_coordinator import Coordinator, coordinator, coordinator_database

__all__ = ["coordinator", "coordinator_database"]  # fixtures


def definition(**changes: Any) -> dict[str, Any]:
    step = {"name": "bill", "service_name": "tc-billing", "payload": {"customer": {"$from": "input.customer"}}}
    return {"steps": [step], **changes}


def put(coordinator: Coordinator, name: str, version: str, document: Any) -> httpx.Response:
    return coordinator.client.put(f"/saga-definitions/{name}/versions/{version}", json=document)


def errors(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [error["field"] for error in answer.json()["errors"]]


def new_name() -> str:
    return f"order-{uuid4().hex[:8]}"


def test_a_version_is_registered_once_and_never_changes(coordinator: Coordinator) -> None:
    name = new_name()
    made = put(coordinator, name, "1", definition(description="Bills."))
    assert made.status_code == 201
    DefinitionRegistered.model_validate_json(made.content)
    place = made.headers["location"]
    assert place == f"/saga-definitions/{name}/versions/1"
    # The same with a default written out.
    again = put(coordinator, name, "1", definition(description="Bills.", timeout_seconds=None))
    assert again.status_code == 200 and not again.json()["registered"]
    assert again.json()["created_at"] == made.json()["created_at"]
    other = put(coordinator, name, "1", definition(description="Bills.", timeout_seconds=5))
    assert other.status_code == 409 and "new version" in other.json()["detail"]
    shown = coordinator.client.get(place)
    DefinitionView.model_validate_json(shown.content)
    assert shown.json()["definition"] == definition(description="Bills.")


def test_many_who_register_the_same_at_once_make_one_version(coordinator: Coordinator) -> None:
    name = new_name()
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda i: put(coordinator, name, "1", definition(timeout_seconds=5 + i % 2)), range(12))
        )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 5 + [201] + [409] * 6


def test_bad_definitions_and_names_are_refused(coordinator: Coordinator) -> None:
    assert errors(put(coordinator, "x", "1", {"steps": []})) == ["steps"]
    assert errors(put(coordinator, "x", "1", {})) == ["steps"]
    assert errors(put(coordinator, "x", "1", definition(input={}))) == ["input"]
    assert errors(put(coordinator, "-x", "1", definition())) == ["name"]
    assert errors(put(coordinator, "x", "v" * 101, definition())) == ["version"]
    bad = {"steps": [{"service_name": "tc-billing", "payload": {"$from": "steps.later.result"}}]}
    assert errors(put(coordinator, "x", "1", bad)) == ["steps[0].payload"]
    assert coordinator.client.get("/saga-definitions/x").status_code == 404
    assert coordinator.client.get("/saga-definitions/x/versions/1").status_code == 404


def test_definitions_are_listed_newest_first_page_by_page(coordinator: Coordinator) -> None:
    name = new_name()
    for version in range(5):
        put(coordinator, name, str(version), definition())
    url: str | None = f"/saga-definitions/{name}?limit=2"
    seen: list[str] = []
    while url is not None:
        answer = coordinator.client.get(url)
        DefinitionPage.model_validate_json(answer.content)
        seen += [one["version"] for one in answer.json()["definitions"]]
        url = answer.json()["next"]
    assert seen == ["4", "3", "2", "1", "0"]
    newest = coordinator.client.get("/saga-definitions?limit=1").json()["definitions"][0]
    assert (newest["name"], newest["version"], newest["steps"]) == (name, "4", ["bill"])
    assert errors(coordinator.client.get("/saga-definitions?limit=100000")) == ["limit"]
    assert errors(coordinator.client.get("/saga-definitions?cursor=x")) == ["cursor"]


def test_a_saga_by_name_runs_the_newest_version_or_the_one_asked_for(coordinator: Coordinator) -> None:
    name = new_name()
    put(coordinator, name, "2", definition(timeout_seconds=60))
    put(coordinator, name, "10", definition(timeout_seconds=70))
    put(coordinator, name, "1", {"steps": [{"service_name": "tc-billing", "payload": {"old": True}}]})

    def made(**changes: Any) -> dict[str, Any]:
        answer = coordinator.post({"name": name, "input": {"customer": 7}} | changes)
        assert answer.status_code == 201, answer.text
        shown = coordinator.client.get(answer.headers["location"])
        SagaView.model_validate_json(shown.content)
        whole: dict[str, Any] = shown.json()
        return whole

    newest = made()
    assert newest["version"] == "1" and newest["steps"][0]["payload"] == {"old": True}
    asked = made(version="10")
    assert asked["version"] == "10" and asked["input"] == {"customer": 7}
    assert asked["steps"][0]["payload"] == {"customer": {"$from": "input.customer"}}
    assert _timeout(coordinator, asked) == 70_000
    assert _timeout(coordinator, made(version="10", timeout_seconds=9)) == 9_000


def _timeout(coordinator: Coordinator, saga: dict[str, Any]) -> int:
    ((stored,),) = coordinator.sql("SELECT definition FROM transactions WHERE id = %s", saga["saga_id"])
    timeout: int = stored["timeout_ms"]
    return timeout


def test_a_later_version_does_not_change_a_saga_in_flight(coordinator: Coordinator) -> None:
    name = new_name()
    put(coordinator, name, "1", definition())
    saga_id = coordinator.post({"name": name, "input": {"customer": 7}}).json()["saga_id"]
    before = coordinator.client.get(f"/sagas/{saga_id}").json()
    put(coordinator, name, "2", definition(timeout_seconds=5))
    assert coordinator.client.get(f"/sagas/{saga_id}").json() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "nobody-registered-this"}, "name"),
        ({"name": "{registered}", "version": "7"}, "version"),
        ({"name": "{registered}", "version": "1", "steps": [{"service_name": "tc-billing"}]}, "version"),
        ({"name": "{registered}"}, "steps[0].payload.customer"),
        ({"name": "{registered}", "input": {"customers": 1}}, "steps[0].payload.customer"),
    ],
)
def test_a_saga_by_name_that_cannot_be_run_is_refused(
    coordinator: Coordinator, body: dict[str, Any], field: str
) -> None:
    name = new_name()
    put(coordinator, name, "1", definition())
    before = coordinator.counts()
    answer = coordinator.post(body | {"name": body["name"].format(registered=name)})
    assert errors(answer) == [field]
    assert coordinator.counts() == before


def test_a_name_that_is_not_registered_is_told_how_to_be(coordinator: Coordinator) -> None:
    answer = coordinator.post({"name": "nobody-registered-this"})
    assert "PUT /saga-definitions/nobody-registered-this/versions/" in answer.json()["errors"][0]["rule"]


def test_a_replay_is_answered_although_a_newer_version_is_there(coordinator: Coordinator) -> None:
    name, key = new_name(), str(uuid4())
    put(coordinator, name, "1", definition())
    body = {"name": name, "input": {"customer": 7}}
    first = coordinator.post(body, Idempotency_Key=key)
    # What ran then would not run now.
    put(coordinator, name, "2", definition(input_required=["other"]))
    assert errors(coordinator.post(body)) == ["input.other"]
    again = coordinator.post(body, Idempotency_Key=key)
    assert again.status_code == 201 and again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert errors(coordinator.post(body | {"input": {}}, Idempotency_Key=key)) == ["Idempotency-Key"]


def test_a_definition_lives_in_the_first_input(coordinator: Coordinator) -> None:
    name = new_name()
    put(coordinator, name, "1", definition())
    saga_id = coordinator.post({"name": name, "input": {"customer": {"id": 1}}}).json()["saga_id"]
    ((stored,),) = coordinator.sql("SELECT definition FROM transactions WHERE id = %s", saga_id)
    assert orjson.loads(stored["input"]) == {"customer": {"id": 1}} and stored["version"] == "1"
    assert stored["steps"][0]["service_name"] == "tc-billing"
