"""Prepare, commit and abort over HTTP, and the sweep: what a coordinator sees of a participant."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from participant import ResourceManager, add_transaction_endpoints
from participant.sweep import Sweep, SweepSettings, Swept
from tests.integration.fix_participant import addresses, database_url, engine, migrated_url
from tests.integration.fix_two_phase import Bank, bank

__all__ = ["addresses", "bank", "database_url", "engine", "migrated_url"]  # fixtures


def new() -> str:
    return str(uuid.uuid4())


class Service:
    """An app with the endpoints, called without a network."""

    def __init__(self, manager: ResourceManager, **options: Any) -> None:
        self.app = FastAPI()
        add_transaction_endpoints(self.app, manager, sweep=False, **options)

    def post(self, call: str, body: Any = None, *, raw: bytes | None = None) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                path = f"/transaction/{call}"
                return await (client.post(path, content=raw) if raw is not None else client.post(path, json=body))

        return asyncio.run(send())


def change(t: str, id: str, balance: int) -> dict[str, Any]:
    return {
        "transaction_id": t,
        "resource": "accounts",
        "resource_id": id,
        "operation": "update",
        "data": {"balance": balance},
    }


def test_a_transaction_over_http_from_prepare_to_commit(bank: Bank) -> None:
    bank.open(ada=1)
    service, t = Service(bank.manager), new()
    for call, state in [
        ("prepare", "PREPARED"),
        ("prepare", "PREPARED"),
        ("commit", "COMMITTED"),
        ("commit", "COMMITTED"),
    ]:
        answer = service.post(call, change(t, "ada", 2))
        assert (answer.status_code, answer.json()) == (200, {"transaction_id": t, "state": state})
    assert bank.balances() == {"ada": 2}
    answer = service.post("abort", {"transaction_id": t})
    assert (answer.status_code, answer.json()["state"]) == (409, "COMMITTED")


def test_several_operations_in_one_payload_and_an_abort(bank: Bank) -> None:
    bank.open(ada=1, bob=1)
    service, t = Service(bank.manager), new()
    operations = [{**change(t, id, 2)} for id in ("ada", "bob")]
    assert service.post("prepare", {"transaction_id": t, "operations": operations}).status_code == 200
    assert len(bank.held()) == 2
    assert service.post("abort", {"transaction_id": t}).json() == {"transaction_id": t, "state": "ABORTED"}
    assert bank.held() == set()
    late = service.post("prepare", {"transaction_id": t, "operations": operations})
    assert (late.status_code, late.json()["detail"]) == (409, "the transaction was aborted here before")


def test_refusals_and_errors_are_problem_documents(bank: Bank) -> None:
    bank.open(ada=1)
    service, t = Service(bank.manager, max_body_bytes=2000), new()
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts")
    held = service.post("prepare", change(new(), "ada", 2))
    assert (held.status_code, held.json()["type"]) == (409, "urn:fluxora:problem:refused")
    assert t in held.json()["detail"]
    unknown = service.post("commit", {"transaction_id": new()})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:fluxora:problem:not-found")
    for body, field in [
        ({}, "transaction_id"),
        ({"transaction_id": 7}, "transaction_id"),
        ([], "body"),
        ({**change(new(), "ada", 1), "operation": "burn"}, "operations[0].operation"),
        ({"transaction_id": new(), "operations": {}}, "operations"),
    ]:
        answer = service.post("prepare", body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert service.post("prepare", raw=b"{").status_code == 422
    large = service.post("prepare", raw=b" " * 2001)
    assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")


def test_what_fails_inside_is_told_without_its_story(bank: Bank) -> None:
    manager = ResourceManager(bank.engine, service="broken")

    def broken(connection: Any, change: Any) -> None:
        raise RuntimeError("a secret")

    manager.resource("thing", apply=broken)
    t = new()
    answer = Service(manager).post("prepare", {"transaction_id": t, "resource_id": "1", "operation": "delete"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert bank.state(t) is None


def test_payloads_of_a_form_of_its_own_are_read_by_the_services_function(bank: Bank) -> None:
    bank.open(ada=10)
    manager = ResourceManager(
        bank.engine,
        service="own",
        operations=lambda payload: [{"resource_id": payload["from"], "operation": "update", "data": payload}],
    )
    manager.resource("money", apply=lambda connection, change: None)
    t = new()
    assert Service(manager).post("prepare", {"transaction_id": t, "from": "ada"}).status_code == 200
    assert bank.held() == {("money", "ada", t)}


# The sweep


Answer = Callable[[httpx.Request], httpx.Response]


def says(state: str) -> Answer:
    return lambda request: httpx.Response(200, json={"state": state})


def problem(slug: str) -> httpx.Response:
    headers = {"content-type": "application/problem+json"}
    return httpx.Response(404, json={"type": f"urn:fluxora:problem:{slug}"}, headers=headers)


def knows_older_ones(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/transactions":
        assert request.url.params["older_than"].endswith("s")
        return httpx.Response(200, json={"transactions": [{"transaction_id": "older"}]})
    return problem("not-found")


def remembers_nothing(request: httpx.Request) -> httpx.Response:
    """Another coordinator, or one whose database was lost."""
    if request.url.path == "/transactions":
        return httpx.Response(200, json={"transactions": []})
    return problem("not-found")


def some_proxy(request: httpx.Request) -> httpx.Response:
    return httpx.Response(404, text="no such host")


def not_a_coordinator(request: httpx.Request) -> httpx.Response:
    return problem("not-found")


def down(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def failing(request: httpx.Request) -> httpx.Response:
    return httpx.Response(503)


@pytest.mark.parametrize(
    ("answer", "old", "state"),
    [
        (says("COMMITTING"), False, "COMMITTED"),
        (says("COMMITTED"), False, "COMMITTED"),
        (says("ABORTING"), False, "ABORTED"),
        (says("ABORTED"), False, "ABORTED"),
        (says("PREPARING"), True, "PREPARED"),
        (says("something new"), True, "PREPARED"),
        (knows_older_ones, False, "PREPARED"),
        (knows_older_ones, True, "ABORTED"),
        (remembers_nothing, True, "PREPARED"),
        (some_proxy, True, "PREPARED"),
        (not_a_coordinator, True, "PREPARED"),
        (down, True, "PREPARED"),
        (failing, True, "PREPARED"),
    ],
)
def test_the_sweep_does_what_the_coordinator_says_and_never_guesses(
    bank: Bank, answer: Answer, old: bool, state: str
) -> None:
    bank.open(ada=1)
    t = new()
    assert bank.manager.prepare(t, "ada", "delete", resource="accounts")
    bank.sql("UPDATE fluxora.prepared SET prepared_at = prepared_at - make_interval(secs => :s)", s=700 if old else 70)
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://coordinator")
    with Sweep(bank.manager, SweepSettings(older_than_s=60, presume_abort_after_s=600), client) as sweep:
        swept = sweep.once()
    assert bank.state(t) == state
    assert (swept.committed, swept.aborted, swept.waiting) == tuple(
        int(state == one) for one in ("COMMITTED", "ABORTED", "PREPARED")
    )


def test_what_is_young_is_left_to_the_coordinator(bank: Bank) -> None:
    bank.open(ada=1)
    assert bank.manager.prepare(new(), "ada", "delete", resource="accounts")
    client = httpx.Client(transport=httpx.MockTransport(down), base_url="http://coordinator")
    with Sweep(bank.manager, SweepSettings(older_than_s=60), client) as sweep:
        assert sweep.once() == Swept()


def test_the_endpoints_sweep_while_their_app_runs(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXORA_SWEEP_INTERVAL_S", "0.1")
    monkeypatch.setenv("FLUXORA_SWEEP_OLDER_THAN_S", "0")
    asked: list[str] = []
    monkeypatch.setattr(Sweep, "once", lambda self: asked.append("once"))
    app = FastAPI()
    add_transaction_endpoints(app, bank.manager, coordinator_url="http://127.0.0.1:1")

    async def run() -> None:
        async with app.router.lifespan_context(app):
            for _ in range(100):
                await asyncio.sleep(0.05)
                if asked:
                    return

    asyncio.run(run())
    assert asked
