"""``/sagas/{id}/cancel``, ``/retry``, ``/skip``: what an operator asks a saga for. The machine decides."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from coordinator import openapi
from coordinator.models import CancelRequest, RetryNowRequest, SagaView, SkipRequest
from coordinator.requests import Requests, not_found
from coordinator.store import Store
from coordinator.views import view
from saga_processors.machine import Request as What
from web.content import accepted, answer, read
from web.problems import Conflict


class Operators:
    """The routes and what they need."""

    def __init__(self, store: Store, requests: Requests) -> None:
        self._store = store
        self._requests = requests

    async def cancel(self, request: Request, saga_id: UUID) -> Response:
        """Turn the saga round: what has run is undone. Refused past the pivot, and once the saga has ended."""
        wanted, plain = await read(request, CancelRequest)
        return await self._ask(request, saga_id, What.CANCEL, wanted, None, plain)

    async def retry(self, request: Request, saga_id: UUID) -> Response:
        """Make the attempts that wait for their time now, of one step or of all. Refused if none waits."""
        wanted, plain = await read(request, RetryNowRequest)
        return await self._ask(request, saga_id, What.RETRY, wanted, wanted.step, plain)

    async def skip(self, request: Request, saga_id: UUID) -> Response:
        """Take a step's action, or its compensation, for done: somebody has seen to it by other means. Without `step`
        that of the only step under way now; 409 if there is none, or are several."""
        wanted, plain = await read(request, SkipRequest)
        step, who, why = wanted.step, wanted.who, wanted.why
        if step is None and not await self._requests.answered(
            request, "saga", saga_id, What.SKIP, plain, who=who, why=why
        ):
            step = await self._only_step(saga_id)
        return await self._ask(request, saga_id, What.SKIP, wanted, step, plain)

    async def _only_step(self, saga_id: UUID) -> str:
        """The step that is skipped without a name: by what is shown now, so that no later one is skipped instead."""
        row = await self._store.read(saga_id)
        if row is None:
            raise not_found("saga", saga_id)
        shown = view(row)
        at_work = [step["id"] for step in shown["steps"] if step["state"] in ("EXECUTING", "COMPENSATING")]
        if len(at_work) != 1:
            names = ", ".join(map(repr, at_work[:5])) or "none"
            raise Conflict(f"name the step to skip; under way: {names}", shown["state"])
        return str(at_work[0])

    async def _ask(
        self, request: Request, saga_id: UUID, what: What, wanted: CancelRequest, step: str | None, plain: Any
    ) -> Response:
        decided = await self._requests.ask(
            request, "saga", saga_id, what, plain, step=step, who=wanted.who, why=wanted.why
        )
        row = await self._store.read(saga_id)
        if row is None:
            raise not_found("saga", saga_id)
        if decided is not None:
            return answer(view(row))
        return answer(view(row), 202, accepted(request, f"/sagas/{saga_id}"))


def router(operators: Operators) -> APIRouter:
    routes = APIRouter(tags=["sagas"])
    for verb, endpoint, extra, summary in (
        ("cancel", operators.cancel, openapi.CANCEL, "Turn a saga round"),
        ("retry", operators.retry, openapi.RETRY, "Try again now"),
        ("skip", operators.skip, openapi.SKIP, "Take a step for done"),
    ):
        routes.add_api_route(
            f"/sagas/{{saga_id}}/{verb}",
            endpoint,
            methods=["POST"],
            operation_id=f"{verb}Saga",
            summary=summary,
            responses=openapi.answers(SagaView, 200, 404, 408, 409, 413, 415, 422, 503)
            | openapi.answers(SagaView, 202, headers=("Location", "Preference-Applied")),
            openapi_extra=extra,
        )
    return routes
