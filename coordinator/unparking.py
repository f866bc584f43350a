"""``/sagas/{id}/unpark`` and ``/transactions/{id}/unpark``: a transaction that could not be folded goes on.

The processor that owns its partition folds the inputs that were queued, when the cause has been mended.
"""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from coordinator import openapi
from coordinator.models import CancelRequest, SagaView
from coordinator.requests import Requests, not_found
from coordinator.store import Store
from coordinator.transaction_models import Accepted, VerbAnswer
from coordinator.transaction_store import TransactionStore
from coordinator.transaction_submission import KIND
from coordinator.transaction_views import DECIDED
from coordinator.views import view
from saga_processors.machine import Request as What
from web.content import accepted, answer, read
from web.problems import Conflict


class Unparking:
    """The routes and what they need."""

    def __init__(self, sagas: Store, transactions: TransactionStore, requests: Requests) -> None:
        self._sagas = sagas
        self._transactions = transactions
        self._requests = requests

    async def saga(self, request: Request, saga_id: UUID) -> Response:
        """Fold what was queued behind the input that could not be folded; all of it, or nothing (409 says why).

        It is folded as it would have been in its time, so a time limit that has passed meanwhile has passed.
        """
        decided = await self._ask(request, "saga", saga_id)
        row = await self._sagas.read(saga_id)
        if row is None:
            raise not_found("saga", saga_id)
        if decided:
            return answer(view(row))
        return answer(view(row), 202, accepted(request, f"/sagas/{saga_id}"))

    async def transaction(self, request: Request, transaction_id: UUID) -> Response:
        """Fold what was queued behind the input that could not be folded; all of it, or nothing (409 says why).

        It is folded as it would have been in its time, so a time limit that has passed meanwhile has passed.
        """
        decided = await self._ask(request, KIND, transaction_id)
        state = (await self._transactions.states([transaction_id])).get(transaction_id)
        if state is None:
            raise not_found(KIND, transaction_id)
        told: dict[str, Any] = {"transaction_id": transaction_id, "state": state}
        if decided:
            return answer(told | {"decided": state in DECIDED})
        return answer(told, 202, accepted(request, f"/transactions/{transaction_id}"))

    async def _ask(self, request: Request, kind: str, id: UUID) -> bool:
        wanted, plain = await read(request, CancelRequest)
        parked = await self._transactions.parked(id, kind)
        if parked is None:
            raise not_found(kind, id)
        if not parked and not await self._requests.answered(
            request, kind, id, What.UNPARK, plain, who=wanted.who, why=wanted.why
        ):
            raise Conflict(f"The {kind} is not parked: nothing waits to be folded.", "not parked")
        return (
            await self._requests.ask(request, kind, id, What.UNPARK, plain, who=wanted.who, why=wanted.why) is not None
        )


def router(unparking: Unparking) -> APIRouter:
    routes = APIRouter()
    for tag, name, endpoint, done, later in (
        ("sagas", "saga", unparking.saga, SagaView, SagaView),
        ("transactions", "transaction", unparking.transaction, VerbAnswer, Accepted),
    ):
        routes.add_api_route(
            f"/{tag}/{{{name}_id}}/unpark",
            endpoint,
            methods=["POST"],
            tags=[tag],
            operation_id=f"unpark{name.title()}",
            summary="Go on where it could not be folded",
            responses=openapi.answers(done, 200, 404, 408, 409, 413, 415, 422, 503)
            | openapi.answers(later, 202, headers=("Location", "Preference-Applied")),
            openapi_extra=openapi.CANCEL,
        )
    return routes
