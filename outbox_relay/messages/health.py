"""``/health``, ``/ready`` and ``/metrics``."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from outbox_relay.messages.confirmation import Confirmation
from outbox_relay.messages.metrics import Metrics
from outbox_relay.messages.rules import Rules
from outbox_relay.messages.store import Store
from outbox_relay.messages.topics import Topics
from web.content import answer
from web.database import Database, DatabaseUnavailable
from web.problems import Problem


def router(
    database: Database, store: Store, topics: Topics, confirmation: Confirmation, rules: Rules, metrics: Metrics
) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/health", operation_id="health", summary="Is the process alive?")
    async def health() -> Response:
        """200 as long as the event loop turns; a dependency that is down is no reason to restart us."""
        return answer({"status": "ok", "reasons": []})

    @routes.get("/ready", operation_id="ready", summary="Can it do its work?")
    async def ready() -> Response:
        """503, with the reasons, while messages cannot be written. A Kafka that does not answer, or a file of rules
        that cannot be used, holds up only a part and is told in `warnings`."""
        warnings = [told for told in (topics.error, confirmation.error, rules.error) if told is not None]
        try:
            await store.check()
        except DatabaseUnavailable as error:
            raise Problem(
                503, "not-ready", str(error), headers={"Retry-After": "2"}, reasons=[str(error)], warnings=warnings
            ) from error
        return answer({"status": "ok", "reasons": [], "warnings": warnings})

    @routes.get("/metrics", operation_id="metrics", summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        metrics.pool_waiting.set(database.waiting)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
