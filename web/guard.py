"""What surrounds every request: limits, the last resort for errors, and the figures for Prometheus.

Plain ASGI: Starlette's BaseHTTPMiddleware costs a task and a queue for every request.
"""

import asyncio
import time
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.metrics import RequestMetrics
from web.problems import Problem, TooLarge, Unavailable

log = structlog.get_logger()


class Guard:
    """Bounds what a client can make the process hold: bodies in size and time, requests in number.

    A body is counted while it is read, so one without Content-Length (chunked) stops at the limit too.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: RequestMetrics,
        max_body_bytes: int,
        body_timeout_seconds: float,
        max_in_flight: int,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout_seconds
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight += 1
        try:
            if self._in_flight > self._max_in_flight:
                raise Unavailable(f"More than {self._max_in_flight} requests are being answered.", 1, "overloaded")
            if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                receive = self._bounded(scope, receive)
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            status = status or 499  # nginx's number for it; nobody is there to read an answer
        except Problem as problem:
            if status == 0:
                await problem.response(scope["path"])(scope, receive, sending)
        except Exception:
            log.exception("request failed unexpectedly", method=scope["method"], path=scope["path"])
            if status != 0:
                raise  # the answer is half sent; only closing the connection tells the client
            ours = Problem(500, "internal", "An error of ours; the log has it.")
            await ours.response(scope["path"])(scope, receive, sending)
        finally:
            self._in_flight -= 1
            route: Any = scope.get("route")
            path = getattr(route, "path", None) or "unmatched"
            self._metrics.answered(scope["method"], path, status, time.perf_counter() - began)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        for name, value in scope["headers"]:
            # A server that lets a senseless length pass is stopped by the count below.
            if name == b"content-length" and value.isdigit() and int(value) > self._max_body_bytes:
                raise self._too_large()
        read = 0
        until = asyncio.get_running_loop().time() + self._body_timeout
        whole = False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408,
                    "slow-body",
                    f"The body did not arrive within {self._body_timeout:g} s.",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > self._max_body_bytes:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> TooLarge:
        limit = f"at most {self._max_body_bytes} bytes"
        return TooLarge(f"The body has {limit}.", "body", limit)
