"""The wiring of the coordinator, in this one place."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI, Request
from starlette.responses import Response

from coordinator import health, openapi, problems, sagas
from coordinator.creation import Creation
from coordinator.guard import Guard
from coordinator.metrics import Metrics
from coordinator.services import Services, kafka_topics
from coordinator.settings import Settings
from coordinator.store import DatabaseUnavailable, Store
from coordinator.submission import Submissions
from coordinator.waiting import Waiting
from schemas import Codec

log = structlog.get_logger()

DESCRIPTION = """\
Starts distributed transactions and tells how they stand. A saga is durable once it is answered with 201; the
processors run it, compensation included, through every crash. Errors are RFC 9457 problem documents.
"""


def _version() -> str:
    try:
        return version("fluxora-transactions")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def create_app(
    settings: Settings, *, codec: Codec | None = None, topics: Callable[[], Iterable[str]] | None = None
) -> FastAPI:
    """Build the application. Nothing is connected before its lifespan begins.

    Args:
        codec: instead of one on the registry of the settings.
        topics: instead of asking Kafka; lists all topics, blocking.

    ``app.state.release_waiters()`` answers all long polls at once, for a graceful end.
    """
    metrics = Metrics()
    store = Store(settings)
    creation = Creation(store, settings.pool_queue)
    waiting = Waiting(settings, store, metrics)
    services = Services(
        settings,
        metrics,
        topics or kafka_topics(settings.kafka_bootstrap_servers, settings.kafka_timeout_seconds),
    )
    submissions = Submissions(settings, codec or Codec(settings.schema_registry_url))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await store.open()
        waiting.start()
        services.start()
        try:
            yield
        finally:
            await waiting.stop()
            await services.stop()
            await creation.stop()
            await store.close()

    app = FastAPI(
        title="Fluxora Transactions: coordinator",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(
        Guard,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
        max_in_flight=settings.max_in_flight,
    )
    problems.install(app)
    openapi.install(app)

    @app.exception_handler(DatabaseUnavailable)
    async def on_database(request: Request, error: DatabaseUnavailable) -> Response:
        log.warning("database unavailable", error=str(error), path=request.url.path)
        return problems.Unavailable("PostgreSQL does not answer.").response(request.url.path)

    app.include_router(sagas.router(sagas.Sagas(settings, store, creation, waiting, services, submissions, metrics)))
    app.include_router(health.router(store, waiting, services, metrics))
    app.state.release_waiters = waiting.release
    return app
