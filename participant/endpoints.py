"""Two-phase commit over HTTP: prepare, commit and abort as routes of the service's own FastAPI or Starlette app.

======================  ==========================================================================
answer                  when
======================  ==========================================================================
200                     the vote is yes; it is committed; it is aborted
409 ``refused``         prepare: the vote is no, with the reason
409 ``conflict``        commit after abort, or abort after commit; ``state`` names it
404 ``not-found``       commit of what was never prepared here
422 ``malformed``       the body breaks a rule; ``errors`` names field and rule
413 ``too-large``       the body is over the limit
503 ``unavailable``     the database is not there, or another call of the transaction is in progress
500 ``internal-error``  the service's own functions failed; the log says how
======================  ==========================================================================

Every error is an RFC 9457 problem document.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from participant.handlers import InvalidService
from participant.local_transaction import is_infrastructure
from participant.sweep import sweep_from_environment
from participant.two_phase import (
    InvalidChange,
    Participant,
    State,
    StillBusy,
    TransactionEnded,
    UnknownTransaction,
    Vote,
    checked_id,
    is_contention,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
#: One of the three, on a thread; only prepare has something to return.
_Call = Callable[[str, dict[str, Any]], Vote | None]
#: Seconds a caller should wait after a 503.
RETRY_AFTER_S = 1


class _TooLarge(Exception):
    pass


def add_transaction_endpoints(
    app: "Starlette",
    resource_manager: Participant,
    *,
    prepare_path: str = "/transaction/prepare",
    commit_path: str = "/transaction/commit",
    abort_path: str = "/transaction/abort",
    max_body_bytes: int = 1 << 20,
    concurrency: int = 16,
    coordinator_url: str | None = None,
    sweep: bool = True,
) -> None:
    """Add the three calls of a two-phase commit to ``app``.

    The body of each is ``{"transaction_id": "…", …payload}``; prepare reads the payload, the others ignore it.
    Database work runs on threads, at most ``concurrency`` at once (the engine's pool should have as many
    connections); further calls wait their turn.

    While the app runs, transactions that stay prepared are brought to their end by asking the coordinator
    (``participant.sweep``), if ``coordinator_url`` or ``COORDINATOR_URL`` names one and ``sweep`` is left on.

    Raises:
        InvalidService: Starlette, which FastAPI is made of, is not installed.
    """
    try:
        from anyio import CapacityLimiter, to_thread
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response
    except ImportError as error:
        raise InvalidService("add_transaction_endpoints needs FastAPI or Starlette: pip install fastapi") from error

    limiter: CapacityLimiter | None = None

    def problem(status: int, slug: str, detail: str, **members: Any) -> Response:
        document = {
            "type": f"urn:fluxora:problem:{slug}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            **members,
        }
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
        return Response(orjson.dumps(document), status, headers, media_type=MEDIA_TYPE)

    def refused(error: Exception) -> Response:
        match error:
            case InvalidChange():
                errors = [{"field": error.field, "rule": error.rule}]
                return problem(422, "malformed", str(error), errors=errors)
            case _TooLarge():
                rule = f"must be at most {max_body_bytes} bytes"
                return problem(413, "too-large", f"the body {rule}", errors=[{"field": "body", "rule": rule}])
            case UnknownTransaction():
                return problem(404, "not-found", str(error))
            case TransactionEnded():
                return problem(409, "conflict", str(error), state=error.state)
            case StillBusy() | PoolTimeout():
                return problem(503, "unavailable", str(error))
            case DBAPIError() if is_infrastructure(error) or is_contention(error):
                log.warning("database_unavailable", error=str(error.orig))
                return problem(503, "unavailable", "The database does not answer; ask again.")
        log.error("transaction_call_failed", exc_info=error)
        return problem(500, "internal-error", "The service failed; its log says how.")

    def endpoint(call: _Call, state: State) -> Callable[["Request"], Awaitable["Response"]]:
        async def answer(request: "Request") -> "Response":
            nonlocal limiter
            # Made here: it belongs to the event loop that runs the app.
            limiter = limiter or CapacityLimiter(concurrency)
            try:
                transaction_id, payload = _parsed(await _body(request, max_body_bytes))
                vote = await to_thread.run_sync(call, transaction_id, payload, limiter=limiter)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except Exception as error:
                return refused(error)
            if vote is not None and not vote:
                told = {"transaction_id": transaction_id, "state": State.ABORTED.value}
                return problem(409, "refused", vote.reason or "the vote is no", **told)
            return Response(
                orjson.dumps({"transaction_id": transaction_id, "state": state.value}), media_type="application/json"
            )

        return answer

    def commit(transaction_id: str, payload: Mapping[str, Any]) -> None:
        resource_manager.commit(transaction_id)

    def abort(transaction_id: str, payload: Mapping[str, Any]) -> None:
        resource_manager.abort(transaction_id)

    calls: list[tuple[str, _Call, State]] = [
        (prepare_path, resource_manager.prepare_payload, State.PREPARED),
        (commit_path, commit, State.COMMITTED),
        (abort_path, abort, State.ABORTED),
    ]
    for path, call, state in calls:
        app.router.add_route(path, endpoint(call, state), methods=["POST"], name=f"transaction-{state.value.lower()}")
    if sweep:
        _sweep_while_running(app, resource_manager, coordinator_url)


def _sweep_while_running(app: "Starlette", participant: Participant, coordinator_url: str | None) -> None:
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(of: Any) -> AsyncIterator[Any]:
        from anyio import to_thread

        async with inner(of) as state:
            sweep = sweep_from_environment(participant, coordinator_url)
            if sweep is not None:
                sweep.start()
            try:
                yield state
            finally:
                if sweep is not None:
                    await to_thread.run_sync(sweep.stop)

    app.router.lifespan_context = lifespan


async def _body(request: "Request", limit: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _TooLarge
    return bytes(body)


def _parsed(body: bytes) -> tuple[str, dict[str, Any]]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidChange("body", f"must be valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidChange("body", "must be a JSON object")
    if "transaction_id" not in document:
        raise InvalidChange("transaction_id", "is required")
    return checked_id(document.pop("transaction_id")), document
