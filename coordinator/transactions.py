"""``/transactions``: begin a two-phase commit, add participants, prepare, commit or abort it, and look at it."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from coordinator import transaction_openapi
from coordinator.creation import Creation
from coordinator.creation_store import TransactionExists
from coordinator.history import Histories, HistoryQuery
from coordinator.metrics import Metrics
from coordinator.models import WaitQuery
from coordinator.pruned import missing
from coordinator.requests import Requests
from coordinator.settings import Settings
from coordinator.transaction_models import (
    ParticipantAdded,
    ParticipantRequest,
    TransactionCreated,
    TransactionHistory,
    TransactionListQuery,
    TransactionPage,
    TransactionRequest,
    TransactionView,
    VerbAnswer,
    VerbRequest,
)
from coordinator.transaction_store import TransactionFilter, TransactionStore
from coordinator.transaction_submission import KIND, TransactionSubmissions
from coordinator.transaction_views import DECIDED, TransactionRow, names, summary, view
from coordinator.waiting import Waiting
from saga_processors.machine import Request as What
from saga_processors.transaction import TransactionState
from schemas import RegistryUnavailable
from web import cursor, durations
from web import openapi as web_openapi
from web.admission import Admission
from web.content import accepted, answer, check_content, parse, read, traceparent
from web.idempotency import digest, idempotency_key, reused
from web.paging import next_page, page_limit
from web.problems import Conflict, Problem

#: The states in which what was asked for has run its course, or has been decided otherwise.
_SETTLED: dict[What, frozenset[TransactionState]] = {
    What.PREPARE: frozenset(TransactionState) - {TransactionState.STARTED, TransactionState.PREPARING},
    What.COMMIT: frozenset({TransactionState.COMMITTED}),
    What.ABORT: frozenset({TransactionState.ABORTED}),
}


class Transactions:
    """The routes and what they need."""

    def __init__(
        self,
        settings: Settings,
        store: TransactionStore,
        creation: Creation,
        requests: Requests,
        waiting: Waiting,
        submissions: TransactionSubmissions,
        histories: Histories,
        metrics: Metrics,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._store = store
        self._creation = creation
        self._requests = requests
        self._waiting = waiting
        self._submissions = submissions
        self._histories = histories
        self._metrics = metrics
        self._admission = admission

    async def create(self, request: Request) -> Response:
        """Begin a two-phase commit. It is durable when the answer comes, and aborts by itself when `timeout_seconds`
        are over without a decision. The body may be left out.

        With an `Idempotency-Key`, the same request sent again is answered as the first one was (201), with
        `Idempotency-Replayed: true`; another body under the same key is 422. Keys are shared by all clients
        of this coordinator. 503 of type `urn:fluxora:problem:overloaded` says that too many wait already; nothing was
        written, and requests to what is there are answered as always.
        """
        key = idempotency_key(request.headers.getlist("idempotency-key"))
        if key is None:
            self._admission.check()
        wanted, plain = await read(request, TransactionRequest)
        digested = None if key is None else digest("POST /transactions", plain)
        created = None
        try:
            self._admission.check()
            new = await self._submissions.make(wanted, traceparent(request.headers.get("traceparent")))
        except (Problem, RegistryUnavailable):
            # A replay is answered as the first was, also when its participants cannot be found just now (as in sagas).
            if key is None or (created := await self._creation.holder(key)) is None:
                raise
        if created is None:
            try:
                with self._admission.creating():
                    created = await self._creation.create(new, key, digested, own_id=wanted.transaction_id is not None)
            except TransactionExists as error:
                raise await self._conflict(new.transaction_id, error) from error
        headers = {"Location": _path(created.transaction_id)}
        if created.holder is None:
            self._metrics.transactions_created.inc()
        elif created.holder != digested:
            raise reused("transaction")
        else:
            headers["Idempotency-Replayed"] = "true"
        return answer({"transaction_id": created.transaction_id, "state": TransactionState.STARTED}, 201, headers)

    async def add_participant(self, request: Request, transaction_id: UUID) -> Response:
        """Take a participant in, as long as the transaction is STARTED. The same one again is answered alike.

        202, if it is not decided within 5 seconds (then it will be: look at the transaction), or at once with
        `Prefer: respond-async`. The same request with the same `Idempotency-Key` is answered as the first one was, also
        when the service cannot be found any more.
        """
        check_content(request)
        wanted, plain = parse(ParticipantRequest, await request.body())

        async def participant() -> dict[str, Any]:
            try:
                return asdict(await self._submissions.participant(wanted))
            except Problem as problem:
                # An id that is not there, or a state that takes nobody, says more than a name that is nowhere.
                state = (await self._read(transaction_id)).state
                if state is not TransactionState.STARTED:
                    raise Conflict(
                        f"participants are added while the transaction is STARTED; it is {state}", state
                    ) from problem
                raise

        given = await self._requests.ask(
            request, KIND, transaction_id, What.ADD_PARTICIPANT, plain, participant=participant
        )
        if given is None:
            return await self._accepted(request, transaction_id)
        return answer(
            {
                "transaction_id": transaction_id,
                "participant_added": wanted.service_name,
                "transport": given.transport,
                "state": given.state,
            },
            201,
            {"Location": _path(transaction_id)},
        )

    async def prepare(self, request: Request, transaction_id: UUID) -> Response:
        """Ask all participants for their votes, and wait for them. One no, or none in time, aborts."""
        return await self._ask(request, transaction_id, What.PREPARE)

    async def commit(self, request: Request, transaction_id: UUID) -> Response:
        """Commit a PREPARED transaction. 200 means that this is decided for good; COMMITTING goes on by itself."""
        return await self._ask(request, transaction_id, What.COMMIT)

    async def abort(self, request: Request, transaction_id: UUID) -> Response:
        """Abort a transaction that is not decided. 200 means that this is decided; ABORTING goes on by itself."""
        return await self._ask(request, transaction_id, What.ABORT)

    async def show(self, request: Request, transaction_id: UUID, query: Annotated[WaitQuery, Query()]) -> Response:
        """One transaction with its participants; with `?wait=` as soon as it has ended, or when the time is over."""
        seconds = durations.wait_seconds(query.wait, self._settings.wait_limit_seconds)
        if seconds <= 0:
            return answer(view(await self._read(transaction_id)))
        with self._waiting.register(transaction_id, self._store.read_many, enough=lambda found: found.ended) as woken:
            row: TransactionRow | None = await self._read(transaction_id)
            if row is not None and not row.ended:
                await request.body()  # after it the only message left to receive is the disconnect
                row = await self._waiting.until(woken, seconds, request.receive)
        return answer(view(row or await self._read(transaction_id)))

    async def history(self, transaction_id: UUID, query: Annotated[HistoryQuery, Query()]) -> Response:
        """What happened to a transaction: its inputs in order, and what was decided on each."""

        async def members() -> dict[str, list[str]]:
            return {"participant": names(await self._read(transaction_id))}

        page = await self._histories.page(f"{_path(transaction_id)}/history", transaction_id, query, members)
        return answer({"transaction_id": transaction_id} | page)

    async def page(self, query: Annotated[TransactionListQuery, Query()]) -> Response:
        """Transactions, newest first, a page at a time."""
        limit = page_limit(query.limit, self._settings.page_size, self._settings.max_page_size)
        wanted = TransactionFilter(
            states=query.state or (),
            participant=query.participant,
            created_after=query.created_after,
            created_before=query.created_before,
            older_than=durations.age_seconds("older_than", query.older_than),
            younger_than=durations.age_seconds("younger_than", query.younger_than),
            needs_attention=query.needs_attention,
            after=None if query.cursor is None else cursor.decode(query.cursor),
        )
        rows = await self._store.page(wanted, limit + 1)
        following = None
        if len(rows) > limit:
            rows = rows[:limit]
            following = cursor.encode(rows[-1]["created_at"], rows[-1]["id"])
        return answer(
            {
                "transactions": [summary(row) for row in rows],
                "next": next_page("/transactions", query, following),
                "next_cursor": following,
            }
        )

    async def _ask(self, request: Request, transaction_id: UUID, verb: What) -> Response:
        until = asyncio.get_running_loop().time() + self._settings.request_wait_seconds
        body, plain = await read(request, VerbRequest)
        given = await self._requests.ask(request, KIND, transaction_id, verb, plain, who=body.who, why=body.why)
        if given is None or given.state is None:
            return await self._accepted(request, transaction_id)
        state = TransactionState(given.state)
        if state not in _SETTLED[verb]:
            state = await self._settled(request, transaction_id, verb, until) or state
        if verb is What.PREPARE and state not in _SETTLED[verb]:
            return await self._accepted(request, transaction_id)
        return answer({"transaction_id": transaction_id, "state": state, "decided": state in DECIDED})

    async def _settled(
        self, request: Request, transaction_id: UUID, verb: What, until: float
    ) -> TransactionState | None:
        """The state once ``verb`` has run its course, or as it is when the time is over."""
        enough = _SETTLED[verb].__contains__
        with self._waiting.register(transaction_id, self._store.states, enough=enough) as woken:
            state = (await self._store.states([transaction_id])).get(transaction_id)
            if state is None or enough(state):
                return state
            left = max(0.0, until - asyncio.get_running_loop().time())
            found = await self._waiting.until(woken, left, request.receive)
        return found or (await self._store.states([transaction_id])).get(transaction_id)

    async def _conflict(self, transaction_id: UUID, error: TransactionExists) -> Problem:
        state: str | None = error.ended
        if state is None:
            state = (await self._store.states([transaction_id])).get(transaction_id, "unknown")
        return Conflict(
            f"There is a transaction {transaction_id} already; its state is {state}. Nothing was written.", state
        )

    async def _accepted(self, request: Request, transaction_id: UUID) -> Response:
        states = await self._store.states([transaction_id])
        state = states.get(transaction_id, TransactionState.STARTED)
        return answer({"transaction_id": transaction_id, "state": state}, 202, accepted(request, _path(transaction_id)))

    async def _read(self, transaction_id: UUID) -> TransactionRow:
        row = await self._store.read(transaction_id)
        if row is None:
            raise missing(KIND, transaction_id, await self._store.pruned(transaction_id))
        return row


def _path(transaction_id: UUID) -> str:
    return f"/transactions/{transaction_id}"


def router(transactions: Transactions) -> APIRouter:
    routes = APIRouter(tags=["transactions"])
    routes.add_api_route(
        "/transactions",
        transactions.create,
        methods=["POST"],
        status_code=201,
        operation_id="createTransaction",
        summary="Begin a two-phase commit",
        responses=transaction_openapi.answers(
            TransactionCreated, 201, 408, 409, 413, 415, 422, 503, headers=("Location", "Idempotency-Replayed")
        ),
        openapi_extra=web_openapi.creates(TransactionRequest, required=False),
    )
    routes.add_api_route(
        "/transactions",
        transactions.page,
        methods=["GET"],
        operation_id="listTransactions",
        summary="List two-phase commits",
        responses=transaction_openapi.answers(TransactionPage, 200, 422, 503),
    )
    routes.add_api_route(
        "/transactions/{transaction_id}",
        transactions.show,
        methods=["GET"],
        operation_id="getTransaction",
        summary="One two-phase commit, now or at its end",
        responses=transaction_openapi.answers(TransactionView, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/transactions/{transaction_id}/history",
        transactions.history,
        methods=["GET"],
        operation_id="getTransactionHistory",
        summary="What happened to it",
        responses=transaction_openapi.answers(TransactionHistory, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/transactions/{transaction_id}/participants",
        transactions.add_participant,
        methods=["POST"],
        status_code=201,
        operation_id="addParticipant",
        summary="Add a participant",
        responses=transaction_openapi.accepted()
        | transaction_openapi.answers(ParticipantAdded, 201, 404, 408, 409, 413, 415, 422, 503, headers=("Location",)),
        openapi_extra=web_openapi.asks(ParticipantRequest, required=True),
    )
    verbs: list[tuple[str, Callable[..., Any], str]] = [
        ("prepare", transactions.prepare, "Collect the votes"),
        ("commit", transactions.commit, "Commit"),
        ("abort", transactions.abort, "Abort"),
    ]
    for verb, route, says in verbs:
        routes.add_api_route(
            f"/transactions/{{transaction_id}}/{verb}",
            route,
            methods=["POST"],
            operation_id=f"{verb}Transaction",
            summary=says,
            responses=transaction_openapi.accepted()
            | transaction_openapi.answers(VerbAnswer, 200, 404, 408, 409, 413, 415, 422, 503),
            openapi_extra=web_openapi.asks(VerbRequest),
        )
    return routes
