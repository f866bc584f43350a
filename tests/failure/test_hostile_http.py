"""HTTP services that hang, lie, break off and say nonsense, and a registry that does: each saga ends whole or undone.

All sagas run at the same time, on the one stack; the tests look at what became of each, and at what the service itself
has recorded.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.http_services import Catalog
from tests.platform import Platform

#: Where machines of a cloud find their secrets; nothing of ours may ever ask there.
METADATA = "169.254.169.254"
TEN_MEGABYTES = b'"' + b"x" * (10 << 20) + b'"'


@dataclass
class Subject:
    """What the service knows of one step of one saga."""

    #: Idempotency-Keys of calls of the action, in order.
    actions: list[str] = field(default_factory=list)
    undoings: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


class Hostile:
    """Does what ``/<manner>/act`` asks for, or not, and answers in that manner. ``/<manner>/undo`` undoes it."""

    def __init__(self) -> None:
        self.subjects: dict[tuple[str, str], Subject] = {}
        self.strayed: list[str] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        hostile = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                _, manner, what = self.path.split("/")
                saga, step = self.headers["fluxora-transaction-id"], self.headers["fluxora-step"]
                with hostile.lock:
                    subject = hostile.subjects.setdefault((saga, step), Subject())
                    if what == "undo":
                        subject.undoings.append(body)
                        attempt = len(subject.undoings)
                    else:
                        subject.actions.append(self.headers["idempotency-key"])
                        attempt = len(subject.actions)
                with contextlib.suppress(ConnectionError):
                    if what == "undo":
                        hostile.undo(self, manner, subject, attempt)
                    else:
                        hostile.act(self, manner, subject, attempt)

            def do_GET(self) -> None:
                hostile.strayed.append(self.path)
                self.say(200, b"{}")

            def say(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def raw(self, content: bytes) -> None:
                self.wfile.write(content)
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.handler = Handler
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def act(self, request: Any, manner: str, subject: Subject, attempt: int) -> None:
        match manner:
            case "redirects":
                where = f"http://{METADATA}/latest/meta-data" if attempt == 1 else f"{self.url}/stray/act"
                request.say(307 if attempt == 1 else 302, b"", location=where)
                return
            case "refuses":
                request.say(422, b'{"detail": "sold out"}')
                return
            case "forbids":
                request.say(403, b'{"detail": "who are you"}')
                return
            case "forgets" if attempt > 1:
                # Without idempotency: it knows that it did this, and calls that a conflict.
                request.say(409, b'{"detail": "there is one already"}')
                return
        subject.done = True
        match manner:
            case "hangs":
                self.released.wait(60)
            case "drips":
                request.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
                while not self.released.wait(0.1):
                    request.wfile.write(b" ")
            case "garbage":
                request.raw(bytes(range(256)) * 10)
            case "nonsense":
                request.say(200, b'{"order": 5')
            case "bloated":
                request.say(200, TEN_MEGABYTES)
            case "dies":
                request.raw(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"order":')
            case "forgets" | "recovers" if attempt == 1:
                request.close_connection = True
            case "stumbles" if attempt == 1:
                request.say(503, b"not now")
            case _:
                request.say(200, b'{"order": 5}')

    def undo(self, request: Any, manner: str, subject: Subject, attempt: int) -> None:
        match attempt if manner == "reluctant" else None:
            case 1:
                request.say(409, b'{"detail": "no"}')
            case 2:
                request.raw(b"\x00")
            case 3:
                request.say(500, b"")
            case _:
                subject.done = False
                request.say(200, b"")

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True)
class Run:
    """A saga of two steps, ``first`` and ``second``, that has ended."""

    saga: dict[str, Any]
    first: Subject
    second: Subject

    @property
    def reason(self) -> str:
        return str(self.saga["reason"])


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.close()


MANNERS = (
    "hangs",
    "drips",
    "garbage",
    "nonsense",
    "bloated",
    "dies",
    "redirects",
    "refuses",
    "forbids",
    "forgets",
    "recovers",
    "stumbles",
    "polite",
)
#: What the registry says about a service, by its name.
REGISTRY = ("unheard-of", "empty", "link-local", "half-true", "not-json", "stale")


@pytest.fixture(scope="module")
def runs(platform: Platform, catalog: Catalog, hostile: Hostile) -> dict[str, Run]:
    host, port = hostile.url.removeprefix("http://").split(":")
    here = {"ServiceAddress": host, "ServicePort": int(port)}
    for name in ("hostile", "stale"):
        catalog.say(name, 200, [here])
    liar = {"ServiceAddress": METADATA, "ServicePort": 80}
    catalog.say("unheard-of", 500, {})
    catalog.say("empty", 200, [])
    catalog.say("link-local", 200, [liar])
    catalog.say("half-true", 200, [liar, here])
    catalog.say("not-json", 200, b"<html>")

    def start(manner: str, service: str = "hostile", first: str = "polite") -> str:
        body = {
            "name": f"hostile-{manner}",
            "steps": [step("first", first, "hostile"), step("second", manner, service)],
        }
        answer = platform.http.post("/sagas", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["saga_id"])

    # It is known, and then its registry goes away for good.
    before = start("polite", "stale")
    began = {manner: start(manner) for manner in MANNERS}
    began["reluctant"] = start("refuses", first="reluctant")
    began |= {service: start("polite", service) for service in REGISTRY if service != "stale"}
    platform.wait_all([before])
    catalog.say("stale", 503, {})
    time.sleep(2)  # what the relay was told is older than its FLUXORA_RELAY_REGISTRY_TTL_S then
    began |= {"known before": before, "stale": start("polite", "stale")}
    platform.wait_all(began.values(), 120)
    nothing = Subject()
    return {
        name: Run(
            platform.wait(id),
            hostile.subjects.get((id, "first"), nothing),
            hostile.subjects.get((id, "second"), nothing),
        )
        for name, id in began.items()
    }


def step(name: str, manner: str, service: str) -> dict[str, Any]:
    return {
        "name": name,
        "service_name": service,
        "action_endpoint": f"/{manner}/act",
        "compensation_endpoint": f"/{manner}/undo",
        "payload": {"manner": manner},
        # Who answers is not hurried: the machine may be busy.
        "timeout_seconds": 6 if manner in ("hangs", "drips") else 30,
        "retry": {"max_attempts": 2, "initial_delay_seconds": 0.05, "max_delay_seconds": 0.2},
    }


def test_each_saga_ends_complete_or_undone_by_what_the_service_itself_has_recorded(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        complete = run.saga["state"] == "COMPLETED"
        assert run.saga["state"] in ("COMPLETED", "FAILED")
        assert (run.first.done, run.second.done) == (complete, complete), name
        # All attempts of an action have one key.
        assert len(set(run.first.actions)) == 1
        assert len(set(run.second.actions)) <= 1
    assert {name for name, run in runs.items() if run.saga["state"] == "COMPLETED"} == {
        "polite",
        "recovers",
        "stumbles",
        "half-true",
        "known before",
        "stale",
    }


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ("hangs", "no "),
        ("drips", "no "),
        ("garbage", "not HTTP"),
        ("nonsense", "not JSON"),
        ("bloated", "over 524288 bytes"),
        ("dies", "broke off"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_then_undone(
    runs: dict[str, Run], manner: str, said: str
) -> None:
    run = runs[manner]
    assert said in run.reason
    assert len(run.second.actions) == 2
    assert len(run.second.undoings) == 1
    assert run.second.undoings[0]["original_payload"] == {"manner": manner}


def test_no_redirect_is_followed(runs: dict[str, Run], hostile: Hostile) -> None:
    assert "HTTP 30" in runs["redirects"].reason
    assert hostile.strayed == []
    assert len(runs["redirects"].second.actions) == 2


@pytest.mark.parametrize("manner", ["refuses", "forbids"])
def test_a_plain_no_has_nothing_undone(runs: dict[str, Run], manner: str) -> None:
    run = runs[manner]
    assert ("sold out" if manner == "refuses" else "who are you") in run.reason
    assert len(run.second.actions) == (1 if manner == "refuses" else 2), "only a refusal is final"
    assert run.second.undoings == []
    assert len(run.first.undoings) == 1


def test_a_refusal_after_a_lost_answer_is_undone_since_the_action_had_run(runs: dict[str, Run]) -> None:
    run = runs["forgets"]
    assert "there is one already" in run.reason
    assert (len(run.second.actions), len(run.second.undoings)) == (2, 1)


def test_an_undoing_is_repeated_whatever_is_answered(runs: dict[str, Run]) -> None:
    run = runs["reluctant"]
    assert len(run.first.undoings) == 4
    assert run.saga["steps"][0]["state"] == "COMPENSATED"


@pytest.mark.parametrize("manner", ["recovers", "stumbles"])
def test_a_second_attempt_that_succeeds_completes_the_saga(runs: dict[str, Run], manner: str) -> None:
    assert len(runs[manner].second.actions) == 2
    assert runs[manner].saga["steps"][1]["result"] == {"order": 5}


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("unheard-of", "registry cannot say"),
        ("empty", "no instance"),
        ("link-local", "is a metadata address"),
        ("not-json", "registry cannot say"),
    ],
)
def test_a_service_that_the_registry_has_no_use_for_is_not_called(
    runs: dict[str, Run], service: str, said: str
) -> None:
    assert said in runs[service].reason
    assert runs[service].second == Subject()


def test_a_registry_that_is_down_takes_no_service_away(runs: dict[str, Run]) -> None:
    assert len(runs["stale"].second.actions) == 1


def test_of_true_and_false_addresses_the_true_ones_are_called(runs: dict[str, Run]) -> None:
    assert len(runs["half-true"].second.actions) == 1
