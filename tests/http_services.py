"""HTTP services of tests, and the registry that they are found in: servers on threads of the test's own process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

#: Status and JSON; bytes are sent as they are.
Answer = tuple[int, Any]


@dataclass(frozen=True)
class Call:
    path: str
    body: Any
    #: Names in lower case.
    headers: dict[str, str]


@dataclass
class HttpService:
    """Answers each POST by ``answer``, and remembers it."""

    url: str
    answer: Callable[[Call], Answer]
    calls: list[Call] = field(default_factory=list)

    def paths(self, saga_id: str) -> list[str]:
        """What was called for a saga, in order."""
        return [call.path for call in self.calls_of(saga_id)]

    def calls_of(self, saga_id: str) -> list[Call]:
        return [call for call in self.calls if call.headers["fluxora-transaction-id"] == saga_id]


@contextmanager
def http_service(answer: Callable[[Call], Answer], port: int = 0) -> Iterator[HttpService]:
    """A service until the end of the block, on any free port or on one that an earlier service had."""

    def respond(method: str, call: Call) -> Answer:
        service.calls.append(call)
        return service.answer(call)

    with _server(respond, port) as url:
        service = HttpService(url, answer)
        yield service


class Catalog:
    """A service registry with Consul's catalog API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._answers: dict[str, Answer] = {}

    def add(self, name: str, *services: HttpService) -> None:
        """Say where ``name`` is found; instead of what was said before."""
        addresses = [service.url.removeprefix("http://").split(":") for service in services]
        self.say(name, 200, [{"ServiceAddress": host, "ServicePort": int(port)} for host, port in addresses])

    def say(self, name: str, status: int, document: Any) -> None:
        """Answer questions for ``name`` with this, true or not."""
        self._answers[name] = status, document

    def find(self, path: str) -> Answer:
        name = unquote(path.removeprefix("/v1/catalog/service/").split("?")[0])
        return self._answers.get(name, (200, []))


@contextmanager
def catalog() -> Iterator[Catalog]:
    """A registry until the end of the block."""
    with _server(lambda method, call: made.find(call.path)) as url:
        made = Catalog(url)
        yield made


@contextmanager
def _server(respond: Callable[[str, Call], Answer], port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(respond("GET", Call(self.path, None, self._names())))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            self._answer(respond("POST", Call(self.path, json.loads(body), self._names())))

        def _names(self) -> dict[str, str]:
            return {name.lower(): value for name, value in self.headers.items()}

        def _answer(self, answer: Answer) -> None:
            status, document = answer
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
