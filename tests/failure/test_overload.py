"""More than the platform can do: what is new is refused, what was accepted is done, and it recovers by itself."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.fix_coordinator import Coordinator, eventually, running
from tests.platform import Platform, steps

CLIENTS = 24
SECONDS = 10.0
LIMIT = 10


@pytest.fixture
def small(platform: Platform) -> Iterator[Coordinator]:
    """One more coordinator of the stack; it admits little."""
    url = platform.endpoints["DATABASE_URL"]
    with running(url, max_backlog=LIMIT, backlog_seconds=0.1, overload_retry_seconds=1) as coordinator:
        eventually(lambda: coordinator.client.get("/ready").status_code == 200, 60)
        yield coordinator


class Load:
    """Clients that start sagas as fast as they are let."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._until = time.monotonic() + SECONDS
        self.accepted: list[str] = []
        self.refused: list[httpx.Response] = []
        self.other: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        body = {"name": "ledger", "steps": [step.as_json(i) for i, step in enumerate(steps({}))]}
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while time.monotonic() < self._until:
                answer = client.post("/sagas", json=body)
                if answer.status_code == 201:
                    self.accepted.append(answer.json()["saga_id"])
                elif answer.status_code == 503:
                    self.refused.append(answer)
                    time.sleep(0.05)
                else:
                    self.other.append(answer.text)


def test_overload_refuses_what_is_new_loses_nothing_and_goes_by(platform: Platform, small: Coordinator) -> None:
    transaction = platform.http.post("/transactions", json={"timeout_seconds": 600}).json()["transaction_id"]
    with Load(small.url) as load:
        eventually(lambda: len(load.refused) > 5, SECONDS)
        # What there is goes on while what is new is refused.
        asked: list[tuple[str, httpx.Response]] = []
        for method, path in (
            ("GET", f"/transactions/{transaction}"),
            ("GET", "/sagas?limit=5"),
            ("POST", f"/transactions/{transaction}/abort"),
            ("GET", "/ready"),
        ):
            asked.append((path, small.client.request(method, path)))
    assert [(path, answer.status_code) for path, answer in asked if answer.status_code not in (200, 202)] == []
    assert load.other == []
    refusals: Counter[Any] = Counter(
        (answer.headers.get("Retry-After"), answer.headers["content-type"], answer.json()["type"])
        for answer in load.refused
    )
    assert set(refusals) == {("1", "application/problem+json", "urn:fluxora:problem:overloaded")}
    assert load.accepted, "it is refused only what is too much"
    assert set(platform.wait_all(load.accepted).values()) == {"COMPLETED"}
    entries = platform.entries(load.accepted)
    assert {id: count for id, count in entries.items() if count != {("s0", "ACTION"): 1}} == {}
    metrics = small.client.get("/metrics").text
    assert f'fluxora_coordinator_refused_total{{limit="backlog"}} {float(len(load.refused))}' in metrics
    eventually(lambda: small.post(platform_saga()).status_code == 201, 30)


def platform_saga() -> dict[str, Any]:
    return {"name": "ledger", "steps": [step.as_json(i) for i, step in enumerate(steps({}))]}


def test_a_replay_of_what_was_accepted_is_answered_while_what_is_new_is_refused(
    platform: Platform, small: Coordinator
) -> None:
    first = small.post(platform_saga(), Idempotency_Key="overload-replay")
    assert first.status_code == 201
    with Load(small.url) as load:
        eventually(lambda: len(load.refused) > 5, SECONDS)
        for _ in range(20):
            again = small.post(platform_saga(), Idempotency_Key="overload-replay")
            assert (again.status_code, again.json()) == (201, first.json())
    platform.wait_all(load.accepted)
