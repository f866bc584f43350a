"""``/sagas``: start one, look at one, wait for one, list them, see what happened."""

from dataclasses import replace
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from coordinator import openapi
from coordinator.creation import Creation
from coordinator.creation_store import TransactionExists
from coordinator.definitions import Definitions
from coordinator.history import Histories, HistoryQuery
from coordinator.metrics import Metrics
from coordinator.models import (
    HistoryPage,
    ListQuery,
    SagaCreated,
    SagaPage,
    SagaRequest,
    SagaView,
    WaitQuery,
)
from coordinator.pruned import missing
from coordinator.services import KafkaUnavailable, Services
from coordinator.settings import Settings
from coordinator.store import SagaFilter, Store
from coordinator.submission import Plan, Submission, Submissions, kafka_services
from coordinator.views import SagaRow, names, time, view
from coordinator.waiting import Waiting
from schemas import RegistryUnavailable
from web import cursor
from web.admission import Admission
from web.content import answer, check_content, parse, traceparent
from web.durations import age_seconds, wait_seconds
from web.idempotency import digest, idempotency_key, reused
from web.paging import next_page, page_limit
from web.problems import Conflict, Malformed, Problem, Unavailable


class Sagas:
    """The routes and what they need."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        creation: Creation,
        waiting: Waiting,
        services: Services,
        definitions: Definitions,
        submissions: Submissions,
        histories: Histories,
        metrics: Metrics,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._store = store
        self._creation = creation
        self._waiting = waiting
        self._services = services
        self._definitions = definitions
        self._submissions = submissions
        self._histories = histories
        self._metrics = metrics
        self._admission = admission

    async def create(self, request: Request) -> Response:
        """Start a saga. It is durable when the answer comes, and runs from then on.

        With an `Idempotency-Key`, the same request sent again is answered as the first one was (201), with
        `Idempotency-Replayed: true`; another body under the same key is 422. Keys are shared by all clients
        of this coordinator.

        After 503 a saga may or may not have been written: send it again with the same `saga_id` or
        `Idempotency-Key` to have it once. 503 of type `urn:fluxora:problem:overloaded` says that too many wait already;
        nothing was written, and requests to what is there are answered as always.
        """
        check_content(request)
        key = idempotency_key(request.headers.getlist("idempotency-key"))
        if key is None:
            self._admission.check()
        wanted, plain = parse(SagaRequest, await request.body())
        digested = None if key is None else digest("POST /sagas", plain)
        created = None
        try:
            self._admission.check()
            saga = await self._checked(wanted, traceparent(request.headers.get("traceparent")))
        except (Problem, RegistryUnavailable):
            # A replay is answered as the first was, whatever has become of services and definitions since. It is
            # looked for here only: what passes the checks meets its key in the statement that writes it.
            if key is None or (created := await self._creation.holder(key)) is None:
                raise
        if created is None:
            try:
                with self._admission.creating():
                    created = await self._creation.create(saga, key, digested, own_id=wanted.saga_id is not None)
            except TransactionExists as error:
                raise await self._conflict(saga.transaction_id, error) from error
        headers = {"Location": f"/sagas/{created.transaction_id}"}
        if created.holder is None:
            self._metrics.created.inc()
        elif created.holder != digested:
            raise reused("saga")
        else:
            headers["Idempotency-Replayed"] = "true"
        return answer({"saga_id": created.transaction_id, "state": "STARTED"}, 201, headers)

    async def show(self, request: Request, saga_id: UUID, query: Annotated[WaitQuery, Query()]) -> Response:
        """One saga with its steps; with `?wait=` as soon as it has ended, or when the time is over."""
        hold = wait_seconds(query.wait, self._settings.wait_limit_seconds)
        if hold <= 0:
            return answer(view(await self._read(saga_id)))
        with self._waiting.register(saga_id, self._store.read_ended) as woken:
            row: SagaRow | None = await self._read(saga_id)
            if row is not None and not row.ended:
                await request.body()  # after it the only message left to receive is the disconnect
                row = await self._waiting.until(woken, hold, request.receive)
        return answer(view(row or await self._read(saga_id)))

    async def page(self, query: Annotated[ListQuery, Query()]) -> Response:
        """Sagas, newest first, a page at a time."""
        limit = page_limit(query.limit, self._settings.page_size, self._settings.max_page_size)
        wanted = SagaFilter(
            name=query.name,
            states=query.state or (),
            service=query.service,
            created_after=query.created_after,
            created_before=query.created_before,
            older_than=age_seconds("older_than", query.older_than),
            younger_than=age_seconds("younger_than", query.younger_than),
            needs_attention=query.needs_attention,
            after=None if query.cursor is None else cursor.decode(query.cursor),
        )
        rows = await self._store.page(wanted, limit + 1)
        following = None
        if len(rows) > limit:
            rows = rows[:limit]
            following = cursor.encode(rows[-1]["created_at"], rows[-1]["id"])
        for row in rows:
            row["saga_id"] = row.pop("id")
            row["created_at"] = time(row["created_at"])
            row["updated_at"] = time(row["updated_at"])
        return answer(
            {
                "sagas": rows,
                "next": next_page("/sagas", query, following),
                "next_cursor": following,
            }
        )

    async def history(self, saga_id: UUID, query: Annotated[HistoryQuery, Query()]) -> Response:
        """What happened to a saga: its inputs in the order of the log, what the machine made of them, what left.

        A saga that has not ended may have more later: ask again with the last `next_cursor` that was not null.
        """

        async def members() -> dict[str, list[str]]:
            return {"step": names(await self._read(saga_id))}

        page = await self._histories.page(f"/sagas/{saga_id}/history", saga_id, query, members)
        return answer({"saga_id": saga_id} | page)

    async def _checked(self, wanted: SagaRequest, trace: str | None) -> Submission:
        plan = await self._plan(wanted)
        saga = await self._submissions.make(wanted, plan, trace)
        await self._check_services(kafka_services(plan.steps))
        return saga

    async def _plan(self, wanted: SagaRequest) -> Plan:
        """What to run: the steps of the request, or the registered ones."""
        if wanted.steps is None:
            plan = await self._definitions.plan(wanted.name, wanted.version)
            own = wanted.timeout_seconds
            return plan if own is None else replace(plan, timeout_seconds=own)
        return Plan.own(wanted)

    async def _check_services(self, wanted: dict[str, list[int]]) -> None:
        """Existence of HTTP services is not checked: instances come and go, and the relay tries again."""
        try:
            unknown = await self._services.unknown(wanted)
        except KafkaUnavailable as error:
            raise Unavailable(
                "Not every service of this saga is known here and Kafka does not answer. Nothing was done.",
                5,
            ) from error
        if unknown:
            raise Malformed(
                [
                    (
                        f"steps[{i}].service_name",
                        f"is a service with a command topic; {name!r} has none. Add it with: "
                        f"fluxora service add {name} --database-url postgresql://... "
                        "If it is an HTTP service, give its action_endpoint",
                    )
                    for name, steps in wanted.items()
                    if name in unknown
                    for i in steps
                ],
                slug="unknown-service",
            )

    async def _conflict(self, saga_id: UUID, error: TransactionExists) -> Problem:
        row = await self._store.read(saga_id)
        state = error.ended or ("unknown" if row is None else row.state.value)
        return Conflict(f"There is a transaction {saga_id} already; its state is {state}. Nothing was written.", state)

    async def _read(self, saga_id: UUID) -> SagaRow:
        row = await self._store.read(saga_id)
        if row is None:
            raise missing("saga", saga_id, await self._store.pruned(saga_id))
        return row


def router(sagas: Sagas) -> APIRouter:
    routes = APIRouter(tags=["sagas"])
    routes.add_api_route(
        "/sagas",
        sagas.create,
        methods=["POST"],
        status_code=201,
        operation_id="createSaga",
        summary="Start a saga",
        responses=openapi.answers(
            SagaCreated, 201, 408, 409, 413, 415, 422, 503, headers=("Location", "Idempotency-Replayed")
        ),
        openapi_extra=openapi.CREATE,
    )
    routes.add_api_route(
        "/sagas",
        sagas.page,
        methods=["GET"],
        operation_id="listSagas",
        summary="List sagas",
        responses=openapi.answers(SagaPage, 200, 422, 503),
    )
    routes.add_api_route(
        "/sagas/{saga_id}",
        sagas.show,
        methods=["GET"],
        operation_id="getSaga",
        summary="One saga, now or at its end",
        responses=openapi.answers(SagaView, 200, 404, 422, 503),
    )
    routes.add_api_route(
        "/sagas/{saga_id}/history",
        sagas.history,
        methods=["GET"],
        operation_id="getSagaHistory",
        summary="What happened to a saga",
        responses=openapi.answers(HistoryPage, 200, 404, 422, 503),
    )
    return routes
