"""``/health``, ``/ready`` and ``/metrics``."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from coordinator.metrics import Metrics
from coordinator.services import Services
from coordinator.store import Store
from coordinator.waiting import Waiting
from web.content import answer
from web.database import Database, DatabaseUnavailable
from web.problems import Problem


def router(database: Database, store: Store, waiting: Waiting, services: Services, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/health", operation_id="health", summary="Is the process alive?")
    async def health() -> Response:
        """200 as long as the event loop turns; a dependency that is down is no reason to restart us."""
        return answer({"status": "ok", "reasons": []})

    @routes.get("/ready", operation_id="ready", summary="Can it do its work?")
    async def ready() -> Response:
        """503, with the reasons, while sagas cannot be written, waiters cannot be woken, or no service is
        known because Kafka was never reached. Known services need no Kafka: its outage alone is told in
        `warnings`."""
        reasons: list[str] = []
        warnings: list[str] = []
        try:
            await store.check()
        except DatabaseUnavailable as error:
            reasons.append(str(error))
        if waiting.error is not None:
            reasons.append(waiting.error)
        if services.error is not None:
            (warnings if services.known else reasons).append(services.error)
        if reasons:
            raise Problem(
                503,
                "not-ready",
                "; ".join(reasons),
                headers={"Retry-After": "2"},
                reasons=reasons,
                warnings=warnings,
            )
        return answer({"status": "ok", "reasons": [], "warnings": warnings})

    @routes.get("/metrics", operation_id="metrics", summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        metrics.pool_waiting.set(database.waiting)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
