"""Two-phase commits over HTTP participants on the real stack: REST, outbox, Debezium, Kafka, processor, relay."""

import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.platform import Platform


class Site:
    """An HTTP service with many participants, each below a path of its own: ``/<name>/transaction/<verb>``."""

    def __init__(self) -> None:
        #: For each transaction and participant the verbs that it was called with, in order.
        self.calls: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self.bodies: list[dict[str, Any]] = []
        #: Status that a participant answers a verb with; default: 200.
        self.answers: dict[tuple[str, str], int] = {}
        #: What a participant waits for before it answers a verb.
        self.holds: dict[tuple[str, str], threading.Event] = {}
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                _, name, _, verb = self.path.split("/")
                with site._lock:
                    site.calls[body["transaction_id"], name].append(verb)
                    site.bodies.append(body)
                if (hold := site.holds.get((name, verb))) is not None:
                    hold.wait(60)
                with contextlib.suppress(ConnectionError):  # who has asked may have given up
                    self.send_response(site.answers.get((name, verb), 200))
                    self.send_header("content-length", "2")
                    self.send_header("content-type", "application/json")
                    self.end_headers()
                    self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            #: As servers in earnest have it; the module's own 5 is less than one service is called with at once.
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="site")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def participant(self, name: str, **payload: Any) -> dict[str, Any]:
        return {"service_name": name, "service_url": f"{self.url}/{name}", "payload": payload}

    def verbs(self, transaction_id: str, name: str) -> set[str]:
        with self._lock:
            return set(self.calls[transaction_id, name])


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def begin(platform: Platform, **body: Any) -> str:
    answer = platform.http.post("/transactions", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/transactions/{answer.json()['transaction_id']}"
    return str(answer.json()["transaction_id"])


def ask(platform: Platform, id: str, verb: str, **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return platform.http.post(f"/transactions/{id}/{verb}", headers=given)


def prepare(platform: Platform, id: str) -> None:
    """Ask for it, and wait for all votes: REST answers 202 when they take longer than it waits."""
    assert ask(platform, id, "prepare").status_code in (200, 202)
    platform.transaction_in(id, "PREPARED")


def ended(platform: Platform, id: str) -> dict[str, Any]:
    platform.http.get(f"/transactions/{id}", params={"wait": "60s"})
    return platform.transaction_in(id, "COMMITTED", "ABORTED", seconds=60)


def test_two_participants_commit(platform: Platform, site: Site) -> None:
    id = begin(platform)
    for name in ("orders", "stock"):
        answer = platform.http.post(f"/transactions/{id}/participants", json=site.participant(name, amount=3))
        assert answer.status_code == 201 and answer.json()["participant_added"] == name, answer.text
    prepare(platform, id)
    again = platform.decided(id, "prepare")
    assert again.status_code == 200 and again.json()["state"] == "PREPARED", again.text
    committed = platform.decided(id, "commit")
    assert committed.status_code == 200 and committed.json()["state"] in ("COMMITTING", "COMMITTED")
    document = ended(platform, id)
    assert document["state"] == "COMMITTED"
    assert [p["state"] for p in document["participants"]] == ["COMMITTED", "COMMITTED"]
    for name in ("orders", "stock"):
        assert site.calls[id, name] == ["prepare", "commit"]
    assert all(body == {"transaction_id": id, "amount": 3} for body in site.bodies)
    refused = platform.decided(id, "abort")
    assert refused.status_code == 409 and refused.json()["state"] == "COMMITTED"


def test_one_no_aborts_at_both(platform: Platform, site: Site) -> None:
    site.answers["stock", "prepare"] = 409
    id = begin(platform, participants=[site.participant("orders"), site.participant("stock")])
    assert ask(platform, id, "prepare").status_code in (200, 202)
    document = ended(platform, id)
    assert document["state"] == "ABORTED" and document["reason"]
    states = {p["service_name"]: p["state"] for p in document["participants"]}
    assert states == {"orders": "ABORTED", "stock": "FAILED"}
    assert "abort" in site.verbs(id, "orders")
    assert not {"commit"} & (site.verbs(id, "orders") | site.verbs(id, "stock"))
    assert platform.decided(id, "commit").status_code == 409


def test_commit_against_abort_has_one_truth(platform: Platform, site: Site) -> None:
    for _ in range(10):
        id = begin(platform, participants=[site.participant("orders"), site.participant("stock")])
        prepare(platform, id)
        with ThreadPoolExecutor(2) as pool:
            commit, abort = pool.map(lambda verb, one=id: platform.decided(one, verb), ["commit", "abort"])
        end = ended(platform, id)["state"]
        won, lost = (commit, abort) if end == "COMMITTED" else (abort, commit)
        assert won.status_code == 200, won.text
        assert lost.status_code == 409 and lost.json()["state"][:5] == end[:5], lost.text
        other = "abort" if end == "COMMITTED" else "commit"
        assert other not in site.verbs(id, "orders") | site.verbs(id, "stock")


def test_without_a_decision_in_time_it_aborts(platform: Platform, site: Site) -> None:
    id = begin(platform, participants=[site.participant("orders")], timeout_seconds=5)
    assert ask(platform, id, "prepare").status_code in (200, 202)
    document = ended(platform, id)
    assert document["state"] == "ABORTED" and "timeout" in document["reason"]
    assert "abort" in site.verbs(id, "orders")
    never_prepared = begin(platform, participants=[site.participant("orders")], timeout_seconds=1)
    assert ended(platform, never_prepared)["state"] == "ABORTED"
    assert platform.decided(never_prepared, "prepare").status_code == 409


def test_participants_are_added_before_prepare_only(platform: Platform, site: Site) -> None:
    id = begin(platform, participants=[site.participant("orders")])
    prepare(platform, id)
    late = platform.http.post(f"/transactions/{id}/participants", json=site.participant("stock"))
    assert late.status_code == 409 and late.json()["state"] == "PREPARED"
    assert platform.decided(id, "abort").status_code == 200
    assert len(ended(platform, id)["participants"]) == 1


def test_nobody_takes_part(platform: Platform) -> None:
    id = begin(platform)
    prepare(platform, id)
    assert ask(platform, id, "commit").status_code in (200, 202)
    assert ended(platform, id)["state"] == "COMMITTED"


def test_the_same_participant_twice_is_one(platform: Platform, site: Site) -> None:
    id = begin(platform)
    for _ in range(2):
        answer = platform.http.post(f"/transactions/{id}/participants", json=site.participant("orders", n=1))
        assert answer.status_code == 201 and answer.json()["participant_added"] == "orders"
    other = platform.http.post(f"/transactions/{id}/participants", json=site.participant("orders", n=2))
    assert other.status_code == 409
    assert [p["payload"] for p in platform.http.get(f"/transactions/{id}").json()["participants"]] == [{"n": 1}]


def test_who_does_not_wait_is_answered_at_once_and_it_happens_all_the_same(platform: Platform, site: Site) -> None:
    hold = site.holds["orders", "prepare"] = threading.Event()
    id = begin(platform, participants=[site.participant("orders")], auto_commit=True)
    answer = ask(platform, id, "prepare", Prefer="respond-async")
    assert answer.status_code == 202 and answer.headers["location"] == f"/transactions/{id}"
    assert platform.http.get(f"/transactions/{id}").json()["state"] in ("STARTED", "PREPARING")
    hold.set()
    assert ended(platform, id)["state"] == "COMMITTED"


def test_two_hundred_participants_commit(platform: Platform, site: Site) -> None:
    id = begin(platform, participants=[site.participant(f"p{i}", n=i) for i in range(200)], timeout_seconds=120)
    prepare(platform, id)
    assert ask(platform, id, "commit").status_code in (200, 202)
    document = ended(platform, id)
    assert {p["state"] for p in document["participants"]} == {"COMMITTED"}
    assert all(site.calls[id, f"p{i}"][0] == "prepare" for i in range(200))


def test_a_service_url_that_is_not_allowed_is_refused(platform: Platform) -> None:
    id = begin(platform)
    for url in ("http://169.254.169.254/", "http://example.org/", "http://user:x@127.0.0.1/", "file:///etc/passwd"):
        answer = platform.http.post(
            f"/transactions/{id}/participants", json={"service_name": "evil", "service_url": url}
        )
        assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "service_url", answer.text


def test_the_history_tells_it_all(platform: Platform, site: Site) -> None:
    id = begin(platform, participants=[site.participant("orders")])
    prepare(platform, id)
    platform.http.post(f"/transactions/{id}/commit", json={"who": "ada", "why": "all is well"})
    ended(platform, id)
    entries = platform.http.get(f"/transactions/{id}/history").json()["entries"]
    assert entries[0]["type"] == "fluxora.TransactionStarted"
    asked = [e["input"]["request"] for e in entries if e["type"] == "fluxora.RequestMade"]
    assert asked == ["PREPARE", "COMMIT"]
    assert entries[-1]["state"] == "COMMITTED"
