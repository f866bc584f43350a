"""``/health``, ``/ready`` and ``/metrics`` for a process that has no web server of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

#: Returns what is wrong, in words; nothing means all is well. Called on every request, from another thread.
Check = Callable[[], Sequence[str]]


#: Seconds without a turn of a loop after which its process counts as hung: longer than handlers and brokers may take.
HUNG_AFTER_S = 120


def hung(silent_s: Mapping[str, float]) -> list[str]:
    """What is wrong, in words, with loops that have not turned for so many seconds."""
    return [f"{loop} has not turned for {s:.0f} s" for loop, s in silent_s.items() if s > HUNG_AFTER_S]


class HealthServer:
    """A tiny HTTP server on a thread of its own.

    ``/health`` answers 503 when the process should be restarted, ``/ready`` when it cannot do its work now;
    both say why: ``{"status": "…", "reasons": […]}``.
    """

    def __init__(self, port: int, live: Check, ready: Check, host: str = "127.0.0.1") -> None:
        """Port 0 takes a free one. Raises OSError if the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/health":
                    self._report(live())
                elif path == "/ready":
                    self._report(ready())
                elif path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
                else:
                    self._answer(404, "application/json", b'{"status":"not found"}')

            def _report(self, reasons: Sequence[str]) -> None:
                body = json.dumps({"status": "failing" if reasons else "ok", "reasons": list(reasons)})
                self._answer(503 if reasons else 200, "application/json", body.encode())

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds; they are not worth a line each."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
