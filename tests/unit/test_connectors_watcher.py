"""The watcher and the Connect client against a Connect that is played."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import stamina

from connectors.connect import Connect, ConnectRefused, ConnectUnavailable
from connectors.debezium import configuration, connector_name
from connectors.watcher import Backoff, Watcher, WatcherSettings

NAME = "fluxora_billing"
CONFIG = configuration("postgresql://app:secret@127.0.0.1:1/billing")


class Played:
    """A Connect: answers by a script, remembers what it was asked to change."""

    def __init__(self) -> None:
        self.connectors: dict[str, dict[str, Any]] = {}
        self.changes: list[str] = []
        self.down = False

    def add(self, task: str = "RUNNING") -> None:
        self.connectors[NAME] = {
            "info": {"config": {**CONFIG, "name": NAME}},
            "status": {
                "connector": {"state": "RUNNING"},
                "tasks": [{"id": 0, "state": task, "trace": "org.X: no\n\tat y\nCaused by: org.Z: gone\n\tat w"}],
            },
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        if request.method == "GET" and request.url.path == "/connectors":
            return httpx.Response(200, json=self.connectors)
        if request.method == "GET":
            name = request.url.path.split("/")[2]
            if name not in self.connectors:
                return httpx.Response(404, json={"error_code": 404, "message": f"Connector {name} not found"})
            return httpx.Response(200, json=self.connectors[name]["info"]["config"])
        self.changes.append(f"{request.method} {request.url.path}")
        return httpx.Response(202, json={})


def client(answer: Callable[[httpx.Request], httpx.Response], patience_s: float = 0.2) -> Connect:
    connect = Connect("http://connect", patience_s=patience_s)
    connect._client.close()
    connect._client = httpx.Client(base_url="http://connect", transport=httpx.MockTransport(answer))
    return connect


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quiet() -> None:
    stamina.instrumentation.set_on_retry_hooks([])


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watcher(played: Played, clock: Clock) -> Watcher:
    settings = WatcherSettings(connect_url="http://connect", restart_wait_min_s=1, restart_wait_max_s=60)
    return Watcher(client(played), settings, clock)


def test_a_failed_task_is_restarted_at_once_and_then_after_waits_that_double(clock: Clock) -> None:
    played = Played()
    played.add("FAILED")
    watching = watcher(played, clock)
    restarted_at = []
    for _ in range(400):
        before = len(played.changes)
        watching.look()
        if len(played.changes) > before:
            restarted_at.append(clock.now - 1000)
        clock.now += 1
    assert restarted_at[:6] == [0, 1, 3, 7, 15, 31]
    assert restarted_at[-1] - restarted_at[-2] == 60
    assert set(played.changes) == {f"POST /connectors/{NAME}/restart"}
    assert f"{NAME}: org.Z: gone" in watching.ready()


def test_a_connector_that_runs_again_is_forgiven_only_after_a_while() -> None:
    backoff = Backoff(1, 60)
    assert [backoff.due("c", t) for t in (0, 1, 2)] == [True, True, False]
    backoff.well("c", 30)
    assert backoff.due("c", 31)
    assert not backoff.due("c", 34.9)
    backoff.well("c", 100)
    assert backoff.due("c", 100.1)
    assert backoff.due("c", 101.2)


def test_a_vanished_connector_is_put_back_with_the_configuration_it_had(clock: Clock) -> None:
    played = Played()
    played.add()
    watching = watcher(played, clock)
    watching.look()
    played.connectors.clear()
    watching.look()
    assert played.changes == [f"PUT /connectors/{NAME}/config"]
    assert f"{NAME}: the connector has vanished" in watching.ready()


def test_what_a_person_has_paused_stays_paused(clock: Clock) -> None:
    played = Played()
    played.add("PAUSED")
    watching = watcher(played, clock)
    watching.look()
    assert played.changes == []


def test_a_connect_that_is_down_is_reported_and_survived(clock: Clock) -> None:
    played = Played()
    played.add()
    watching = watcher(played, clock)
    watching.look()
    played.down = True
    watching.look()
    assert any("connect:" in reason for reason in watching.ready())
    assert watching.live() == []
    played.down = False
    watching.look()
    assert not any("connect:" in reason for reason in watching.ready())


def test_connect_is_waited_for_while_it_starts_or_rebalances() -> None:
    answers = [httpx.Response(404, text="<html>"), httpx.Response(409, json={"message": "rebalance"})]

    def answer(request: httpx.Request) -> httpx.Response:
        return answers.pop(0) if answers else httpx.Response(200, json={})

    assert client(answer, patience_s=5).connectors() == {}


def test_a_wrong_configuration_is_refused_at_once_with_connects_words() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404, json={"message": "Connector x not found"})
        return httpx.Response(400, json={"message": "slot.name: wrong"})

    with pytest.raises(ConnectRefused, match=r"slot\.name: wrong"):
        client(answer).put("x", {})


def test_a_connect_that_never_answers_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ConnectUnavailable, match="does not answer"):
        client(answer).connectors()


@pytest.mark.parametrize(
    ("database", "name"),
    [("billing", "fluxora_billing"), ("Meter-Data.v2", "fluxora_meter_data_v2"), ("x" * 80, "fluxora_" + "x" * 55)],
)
def test_a_connectors_name_can_be_a_slots(database: str, name: str) -> None:
    assert connector_name(database) == name


def test_loss_is_configured_to_be_a_failure() -> None:
    assert CONFIG["offset.mismatch.strategy"] == "trust_offset"
    assert CONFIG["snapshot.mode"] == "no_data"
    assert CONFIG["publication.autocreate.mode"] == "disabled"
    assert CONFIG["slot.drop.on.stop"] == "false"
    assert CONFIG["database.password"] == "secret"
    assert all(isinstance(value, str) for value in CONFIG.values())
