"""SagaClient against a real coordinator; the processor's part is played with SQL."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest

from participant.saga_client import CallFailed, Conflict, Invalid, NotEnded, NotFound, SagaClient, Unavailable
from participant.sagas import Retry, Step
from tests.integration.fix_coordinator import Coordinator, coordinator, coordinator_database, running

__all__ = ["coordinator", "coordinator_database"]  # fixtures


@pytest.fixture
def sagas(coordinator: Coordinator) -> Iterator[SagaClient]:
    with SagaClient("web-shop", coordinator.url, retry_seconds=2) as client:
        yield client


def test_a_saga_is_started_looked_at_and_waited_for(sagas: SagaClient, coordinator: Coordinator) -> None:
    step = Step(
        "tc-billing",
        {"n": 1},
        name="bill",
        kind="pivot",
        retry=Retry(max_attempts=7),
        depends_on=[],
        action_endpoint="/bill",
        compensation_endpoint="/unbill",
    )
    saga_id = sagas.start_saga("order", [step, {"service_name": "tc-billing", "kind": "retriable"}], input={"a": 1})
    saga = sagas.get_saga_status(saga_id)
    assert saga["saga_id"] == saga_id and saga["state"] == "STARTED" and saga["input"] == {"a": 1}
    assert saga["steps"][0]["kind"] == "pivot" and saga["steps"][0]["payload"] == {"n": 1}
    with pytest.raises(NotEnded) as told:
        sagas.wait(saga_id, 0.3)
    assert told.value.saga["saga_id"] == saga_id
    threading.Timer(0.3, lambda: coordinator.end(saga_id)).start()
    began = time.monotonic()
    assert sagas.wait(saga_id)["state"] == "COMPLETED"
    assert time.monotonic() - began < 5
    assert sagas.history(saga_id)["entries"] == []
    assert saga_id in [one["saga_id"] for one in sagas.list_sagas(name="order", younger_than="1h")["sagas"]]


def test_a_definition_is_registered_and_run(sagas: SagaClient) -> None:
    name = f"order-{uuid4().hex[:8]}"
    document = {"steps": [Step("tc-billing", {"c": {"$from": "input.c"}}, name="bill")]}
    assert sagas.register(name, "1", document) and not sagas.register(name, "1", document)
    with pytest.raises(Conflict, match="new version"):
        sagas.register(name, "1", {**document, "timeout_seconds": 9})
    assert [one["version"] for one in sagas.definitions(name)["definitions"]] == ["1"]
    assert sagas.get_saga_status(sagas.run(name, {"c": 7}))["version"] == "1"
    with pytest.raises(Invalid) as told:
        sagas.run(name, {})
    assert told.value.errors[0][0] == "steps[0].payload.c"


def test_every_error_says_what_it_is(sagas: SagaClient) -> None:
    with pytest.raises(NotFound):
        sagas.get_saga_status(uuid4())
    with pytest.raises(NotFound):
        sagas.wait(uuid4(), 5)
    with pytest.raises(NotFound):
        sagas.cancel(uuid4())
    with pytest.raises(Invalid) as told:
        sagas.start_saga("order", [{"service_name": "nobody-there"}, {}])
    assert ("steps[1].service_name", "is required") in told.value.errors
    assert "steps[1].service_name: is required" in str(told.value)
    with pytest.raises(Invalid):
        sagas.start_saga("order", [Step("tc-billing", object())])
    with pytest.raises(Invalid):
        sagas.get_saga_status("no-id")
    saga_id = uuid4()
    assert sagas.start_saga("order", [Step("tc-billing")], saga_id=saga_id) == str(saga_id)
    with pytest.raises(Conflict) as taken:
        sagas.start_saga("order", [Step("tc-billing")], saga_id=saga_id)
    assert taken.value.state == "STARTED"


def test_one_client_serves_many_threads(sagas: SagaClient) -> None:
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda i: sagas.start_saga(f"order-{i % 3}", [Step("tc-billing", i)]), range(64)))
        payloads = list(pool.map(lambda made: sagas.get_saga_status(made)["steps"][0]["payload"], ids))
    assert len(set(ids)) == 64 and payloads == list(range(64))


def test_the_callers_own_key_makes_one_saga(sagas: SagaClient) -> None:
    key = str(uuid4())
    ids = {sagas.start_saga("order", [Step("tc-billing")], idempotency_key=key) for _ in range(3)}
    assert len(ids) == 1


class _Unlucky(BaseHTTPRequestHandler):
    """Passes requests on, and loses the first answers to each key."""

    protocol_version = "HTTP/1.1"
    target: tuple[str, int]
    tries: dict[str, int]

    def do_POST(self) -> None:
        key = self.headers["idempotency-key"]
        body = self.rfile.read(int(self.headers["content-length"]))
        tried = self.tries[key] = self.tries.get(key, 0) + 1
        if tried == 1:
            self.send_response(503)
            self.send_header("retry-after", "0")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        # From here on the coordinator does what it is asked, whoever hears of it.
        with socket.create_connection(self.target) as wire:
            head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: {key}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            wire.sendall(head.encode() + body)
            answer = b""
            while read := wire.recv(65536):
                answer += read
        if tried > 3:
            self.wfile.write(answer)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def unlucky(coordinator: Coordinator) -> Iterator[str]:
    port = int(coordinator.url.rsplit(":", 1)[1])
    handler = type("Handler", (_Unlucky,), {"target": ("127.0.0.1", port), "tries": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_start_whose_answer_is_lost_is_sent_again_and_makes_one_saga(coordinator: Coordinator) -> None:
    before = coordinator.counts()
    with unlucky(coordinator) as url, SagaClient("web-shop", url, retry_seconds=10) as sagas:
        saga_id = sagas.start_saga("order", [Step("tc-billing")])
    assert coordinator.client.get(f"/sagas/{saga_id}").status_code == 200
    after = coordinator.counts()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


def test_a_request_that_no_processor_decides_is_unavailable(coordinator_database: str) -> None:
    with (
        running(coordinator_database, request_wait_seconds=0.2) as impatient,
        SagaClient("web-shop", impatient.url, retry_seconds=1) as sagas,
    ):
        saga_id = sagas.start_saga("order", [Step("tc-billing")])
        before = impatient.counts()
        with pytest.raises(Unavailable, match="no processor has decided"):
            sagas.cancel(saga_id)
        assert impatient.counts()[1] - before[1] == 1


def test_nobody_there_is_unavailable_after_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with SagaClient("web-shop", "http://127.0.0.1:9", retry_seconds=0.5) as sagas:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 does not answer"):
            sagas.start_saga("order", [Step("tc-billing")])
        assert time.monotonic() - began < 20
    monkeypatch.delenv("COORDINATOR_URL", raising=False)
    with pytest.raises(ValueError, match="COORDINATOR_URL"):
        SagaClient("web-shop")
    assert issubclass(Unavailable, CallFailed)
